"""Configuration of clusters."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from lissom.artifact.manifest import annotate
from lissom.errors import ArtifactError, RecipeError
from lissom.export.deploy import KEYS, PLACE, Plan, deploy
from lissom.server.replicas import Replicas


def plan(folder: Path, name: str = "small") -> Plan:
    return Plan(
        folder=folder,
        name=name,
        image="lissom:1",
        nbytes=800 * 2**20,
        cores=2,
        replicas=(1, 4),
        at_once=8,
        context=512,
    )


def test_compose_runs_the_server_with_what_the_model_needs(mixed: Path, tmp_path: Path) -> None:
    annotate(mixed, certificate={"verdict": "PASS", "max_drop": 0.01})
    deploy(plan(mixed), "compose", tmp_path / "out")
    service = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]["small"]
    assert service["command"][:3] == [f"small={PLACE}", "--host", "0.0.0.0"]
    assert service["command"][service["command"].index("--keys") + 1] == KEYS
    assert service["volumes"] == [f"{mixed}:{PLACE}:ro"]
    assert service["deploy"]["resources"]["limits"] == {"memory": "1000M", "cpus": "2"}
    assert service["labels"]["lissom/certificate"] == "PASS 0.01"
    assert any(name.startswith("lissom/sha256.") for name in service["labels"])


def test_kserve_scales_and_is_probed(mixed: Path, tmp_path: Path) -> None:
    deploy(plan(mixed), "kserve", tmp_path / "out")
    told = yaml.safe_load((tmp_path / "out" / "service.yaml").read_text())
    assert (told["apiVersion"], told["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = told["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["scaleTarget"]) == (1, 4, 8)
    (container,) = predictor["containers"]
    assert container["resources"]["limits"] == {"memory": "1000Mi", "cpu": "2"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in predictor["volumes"]}


def test_vllm_and_ray_get_the_model_in_their_form(mixed: Path, tmp_path: Path) -> None:
    deploy(plan(mixed), "vllm", tmp_path / "vllm")
    script = tmp_path / "vllm" / "serve.sh"
    assert os.access(script, os.X_OK)
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text('#!/bin/sh\necho "$@"\n')
    vllm.chmod(0o755)
    path = {"PATH": f"{vllm.parent}:{os.environ['PATH']}"}
    said = subprocess.run([script, "--port", "1"], capture_output=True, text=True, env=path, check=True).stdout.split()
    assert said[1] == str(tmp_path / "vllm" / "model")
    assert said[2:] == ["--served-model-name", "small", "--max-num-seqs", "8", "--max-model-len", "512", "--port", "1"]
    assert (tmp_path / "vllm" / "model" / "config.json").is_file()
    deploy(plan(mixed), "ray-llm", tmp_path / "ray")
    (application,) = yaml.safe_load((tmp_path / "ray" / "ray.yaml").read_text())["applications"]
    (config,) = application["args"]["llm_configs"]
    assert config["model_loading_config"] == {"model_id": "small", "model_source": "./model"}
    assert config["deployment_config"]["autoscaling_config"]["max_replicas"] == 4


def test_ray_gets_what_its_builder_takes(mixed: Path, tmp_path: Path) -> None:
    deploy(plan(mixed), "ray", tmp_path / "out")
    (application,) = yaml.safe_load((tmp_path / "out" / "ray.yaml").read_text())["applications"]
    assert application["import_path"] == "lissom.server.replicas:build"
    told = Replicas(**application["args"])
    assert (told.folder, told.name, told.least, told.most, told.at_once) == (str(mixed), "small", 1, 4, 8)


def test_mistakes_are_named_and_leave_nothing(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'nomad' is none of compose, kserve, ray, ray-llm, vllm"):
        deploy(plan(mixed), "nomad", tmp_path / "out")
    with pytest.raises(RecipeError, match="'My Model' cannot be the name"):
        deploy(plan(mixed, "My Model"), "kserve", tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        deploy(plan(mixed), "compose", tmp_path / "taken")
    assert not (tmp_path / "out").exists()
