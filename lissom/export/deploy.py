"""Configuration for the clusters that people already run, from what is known of a model: its bytes, its evidence.

Docker Compose, KServe and Ray Serve run lissom's own server, which takes any model of ours. vLLM, alone or under Ray,
runs a folder of compressed-tensors, which is written too. Every file can be read and changed by hand.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lissom.artifact import MANIFEST
from lissom.artifact.manifest import building
from lissom.errors import RecipeError, meant
from lissom.export.targets import export_folder
from lissom.files import read_json

MEBIBYTE = 2**20
ROOM = 1.25  # of the bytes foreseen: what a limit of memory leaves to be wrong by
NAME = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?")
PLACE, KEYS = "/mnt/models", "/run/secrets/keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to run, and with what.

    Args:
        folder: the model.
        name: what clients ask for.
        image: of lissom's server (examples/service/Dockerfile).
        nbytes: of memory that it is foreseen to take.
        cores: that it may use.
        replicas: at least and at most.
        at_once: sequences that a replica takes at once.
        context: tokens of a sequence at most, of a language model.
    """

    folder: Path
    name: str
    image: str
    nbytes: int
    cores: int
    replicas: tuple[int, int]
    at_once: int
    context: int | None

    @property
    def memory(self) -> str:
        """The limit of memory, as Kubernetes and Docker write it."""
        return f"{math.ceil(self.nbytes * ROOM / MEBIBYTE)}Mi"

    @property
    def words(self) -> list[str]:
        """What lissom's server is started with, where the model lies in `PLACE`."""
        return [f"{self.name}={PLACE}", "--host", "0.0.0.0", "--port", "8000", "--keys", KEYS, "--log", "json"]

    @property
    def evidence(self) -> dict[str, str]:
        """What stands in the model's manifest of its certificate and its files, as labels take it."""
        manifest = read_json(self.folder / MANIFEST) if (self.folder / MANIFEST).is_file() else {}
        told: Mapping[str, Any] = manifest.get("certificate") or {}
        files = {f"lissom/sha256.{name}": file["sha256"] for name, file in manifest.get("files", {}).items()}
        verdict = {"lissom/certificate": f"{told['verdict']} {told['max_drop']:g}"} if told else {}
        return verdict | {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


def compose(plan: Plan) -> dict[str, str]:
    """Docker Compose: `docker compose up`, with a file of keys beside it (`lissom keys keys.json --add NAME`)."""
    server = {
        "image": plan.image,
        "command": plan.words,
        "ports": ["8000:8000"],
        "volumes": [f"{plan.folder.resolve()}:{PLACE}:ro"],
        "secrets": [{"source": "keys", "target": KEYS}],
        "labels": plan.evidence,
        "environment": {"LISSOM_CACHE": "/tmp"},
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
        "deploy": {"resources": {"limits": {"memory": plan.memory.replace("Mi", "M"), "cpus": str(plan.cores)}}},
    }
    return {"compose.yaml": written({"services": {plan.name: server}, "secrets": {"keys": {"file": "./keys.json"}}})}


def kserve(plan: Plan) -> dict[str, str]:
    """KServe: `kubectl apply -f service.yaml`; the model lies on a claim, the keys are a secret, both of its name."""
    probes = {
        name: {"httpGet": {"path": f"/health/{path}", "port": 8000}, "periodSeconds": 5}
        for name, path in (("readinessProbe", "ready"), ("livenessProbe", "live"))
    }
    resources = {"memory": plan.memory, "cpu": str(plan.cores)}
    container = {
        "name": "kserve-container",
        "image": plan.image,
        "args": plan.words,
        "env": [{"name": "LISSOM_CACHE", "value": "/tmp"}],
        "ports": [{"containerPort": 8000, "protocol": "TCP"}],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "model", "mountPath": PLACE, "readOnly": True},
            {"name": "keys", "mountPath": str(Path(KEYS).parent), "readOnly": True},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **probes,
    }
    predictor = {
        "minReplicas": plan.replicas[0],
        "maxReplicas": plan.replicas[1],
        "scaleMetric": "concurrency",
        "scaleTarget": plan.at_once,
        "containers": [container],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": plan.name, "readOnly": True}},
            {"name": "keys", "secret": {"secretName": plan.name, "items": [{"key": "keys", "path": Path(KEYS).name}]}},
        ],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": plan.name, "annotations": plan.evidence},
        "spec": {"predictor": predictor},
    }
    return {"service.yaml": written(service)}


def vllm(plan: Plan) -> dict[str, str]:
    """vLLM: a script that serves the folder `model` beside it."""
    words = ["vllm", "serve", '"$(dirname "$0")/model"', "--served-model-name", plan.name]
    words += ["--max-num-seqs", str(plan.at_once)]
    words += ["--max-model-len", str(plan.context)] if plan.context else []
    return {"serve.sh": f'#!/bin/sh\n# pip install vllm\nexec {" ".join(words)} "$@"\n'}


def ray(plan: Plan) -> dict[str, str]:
    """Ray Serve with lissom's own engine (`pip install lissom[ray]`): `serve run ray.yaml`, beside a file of keys."""
    told = {
        "folder": str(plan.folder.resolve()),
        "name": plan.name,
        "keys": "keys.json",
        "at_once": plan.at_once,
        "least": plan.replicas[0],
        "most": plan.replicas[1],
        "cores": plan.cores,
    }
    return {"ray.yaml": application(plan, "lissom.server.replicas:build", told)}


def application(plan: Plan, builder: str, told: Mapping[str, Any]) -> str:
    """A file for `serve run`, of one application."""
    one = {"name": plan.name, "route_prefix": "/", "import_path": builder, "args": told}
    return written({"applications": [one]})


def ray_llm(plan: Plan) -> dict[str, str]:
    """Ray Serve's own server of language models: `serve run ray.yaml`, in the folder where `model` lies."""
    settings = {"max_num_seqs": plan.at_once, **({"max_model_len": plan.context} if plan.context else {})}
    scaling = {
        "min_replicas": plan.replicas[0],
        "max_replicas": plan.replicas[1],
        "target_ongoing_requests": plan.at_once,
    }
    config = {
        "model_loading_config": {"model_id": plan.name, "model_source": "./model"},
        "engine_kwargs": settings,
        "deployment_config": {"autoscaling_config": scaling, "max_ongoing_requests": 2 * plan.at_once},
    }
    return {"ray.yaml": application(plan, "ray.serve.llm:build_openai_app", {"llm_configs": [config]})}


CLUSTERS: dict[str, Callable[[Plan], dict[str, str]]] = {
    "compose": compose,
    "kserve": kserve,
    "ray": ray,
    "ray-llm": ray_llm,
    "vllm": vllm,
}
HANDED = ("vllm", "ray-llm")  # which run vLLM's engine


def written(content: Mapping[str, Any]) -> str:
    """As YAML, in the order it was said."""
    return yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, width=120)


def deploy(plan: Plan, to: str, out: Path) -> Path:
    """Write a folder with the configuration, and with what that serves where it is not lissom's own server.

    Raises:
        RecipeError: there is no such cluster, or it takes no such name.
        ModelError: the model cannot be handed over to its engine.
        ArtifactError: the name is taken, or the disk is full.
    """
    if not NAME.fullmatch(plan.name):
        raise RecipeError(f"deploy: {plan.name!r} cannot be the name of a service; use small letters, digits and '-'")
    if to not in CLUSTERS:
        raise RecipeError(f"deploy: {to!r} is none of {', '.join(CLUSTERS)}{meant(to, CLUSTERS)}")
    with building(out) as folder:
        if to in HANDED:
            export_folder(plan.folder, "vllm", folder / "model")
        for name, text in CLUSTERS[to](plan).items():
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)
    return out
