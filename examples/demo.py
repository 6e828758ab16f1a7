"""The main job, start to end: optimize a classifier and a language model under a budget, serve the second, use it.

make demo
"""

import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from article import MyModel, digits, train
from openai import OpenAI
from rich.console import Console

import lissom
from lissom.report import frontier_table

STORIES = Path(lissom.__file__).parent / "demo"
console = Console(width=max(Console().width, 120))


def title(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]\n")


def classifier(folder: Path) -> None:
    title("1  A classifier of handwritten digits, under a budget of 2 %")
    torch.manual_seed(0)
    images, labels, more_images, more_labels = digits()
    model = MyModel(images[0].numel())
    train(model, images[:600], labels[:600], epochs=30)
    data = torch.cat([images[600:], more_images]), torch.cat([labels[600:], more_labels])
    result = lissom.optimize(model, data, lissom.Budget(max_drop=0.02, confidence=0.95))
    console.print(frontier_table(result.points, result.best.point.name if result.best else None, metric="accuracy"))
    console.print(f"\n{result.certificate}", highlight=False)
    if result.best is None:
        sys.exit("nothing was certified, which should not be")
    saved = result.best.save(folder / "digits")
    console.print(f"saved, with its graph and certificate, in {saved}", highlight=False)


def language_model(folder: Path) -> Path:
    title("2  A small language model, under a budget of 2 % of perplexity")
    out = folder / "stories"
    command = [sys.executable, "-m", "lissom.cli", "optimize", str(STORIES), "--data", str(STORIES / "stories.txt")]
    windows = ["--length", "128", "--windows", "240"]
    subprocess.run([*command, *windows, "--max-drop", "2%", "--out", str(out)], check=True)
    return out


def story(model: Path) -> None:
    title("3  Served, and asked for a story")
    command = [sys.executable, "-m", "lissom.cli", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}/health/ready", timeout=30) as answer:
                console.print(f"{url} is ready ({answer.status})", highlight=False)
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            parts = client.completions.create(
                model="stories", prompt="Once upon a time", max_tokens=160, temperature=0.7, seed=7, stream=True
            )
            print("\nOnce upon a time", end="")
            for part in parts:
                print(part.choices[0].text if part.choices else "", end="", flush=True)
            print()
        finally:
            server.terminate()
            code = server.wait(timeout=60)
        console.print(f"\nthe server stopped with {code}", highlight=False)
    if code:
        sys.exit(code)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lissom-demo-") as name:
        folder = Path(name)
        classifier(folder)
        model = language_model(folder)
        story(model)


if __name__ == "__main__":
    main()
