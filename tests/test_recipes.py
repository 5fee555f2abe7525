"""Laws of docs/cluster.md: what stands there for `ray up`, Slurm and KubeRay is what those take, and does what the page
says. The recipes are read from the page itself.

Ray's own launcher runs for real, with the head on this machine, and what it tells the other machines is read off; the
batch script runs for real, on two nodes of this machine. What stands for ssh and for Slurm is small programs, which
refuse what they do not know. `ray stop`, which ends every Ray of a machine, is never run.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from discover import artefact, cli
from discover.archive import Archive
from discover.records import Generation

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
DEADLINE = 240.0


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    (body,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(body)


def block(text: str, language: str = "") -> str:
    """The only fenced block of a language."""
    (found,) = [body for name, body in FENCED.findall(text) if name == language]
    return str(found)


RAY_UP, SLURM, KUBERAY = section("With `ray up`"), section("With Slurm"), section("On Kubernetes, with KubeRay")


class Ground:
    """A folder, programs that come first in PATH there, and a place of its own for Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="recipe-", dir="/tmp")  # Ray's sockets want a short path
        self.ray = self._temporary.name
        (folder / "bin").mkdir()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))},
            "HOME": str(folder),  # Ray keeps its token there
            "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}",
            "RAY_TMPDIR": self.ray,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(text))
        path.chmod(0o755)

    def processes(self, name: bytes = b"") -> dict[int, dict[str, str]]:
        """Those that were started here and whose command begins so, with their environments."""
        found = {}
        for each in Path("/proc").iterdir():
            with suppress(OSError):  # it is none, or is gone
                pairs = [pair.partition(b"=") for pair in (each / "environ").read_bytes().split(b"\0")]
                environment = {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}
                if environment.get("RAY_TMPDIR") == self.ray and (each / "cmdline").read_bytes().startswith(name):
                    found[int(each.name)] = environment
        return found

    def end(self) -> None:
        """Kills what is left here, as Slurm does with a job whose script is over."""
        while left := self.processes():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.end()
        self._temporary.cleanup()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    yield ground
    ground.close()


def is_free(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) != 0


# Every command of the page --------------------------------------------------------------------------------------------


def commands(name: str) -> list[str]:
    """The calls of a program in the page's blocks, numbers in place of the shell's variables."""
    text = "".join(body for _, body in FENCED.findall(PAGE)).replace("\\\n", "")
    called = re.findall(rf"(?:^|[ /']){name} [a-z](?:'[^'\n]*'|[^'\n&>])*", text, re.MULTILINE)
    return sorted({re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", each.lstrip(" /'").strip()) for each in called})


@pytest.mark.parametrize("command", commands("discover"))
def test_discover_takes_what_the_page_gives_it(command: str) -> None:
    takes(typer.main.get_command(cli.app), *shlex.split(command)[1:])


@pytest.mark.parametrize("command", commands("ray"))
def test_ray_takes_what_the_page_gives_it(command: str) -> None:
    from ray.scripts.scripts import cli as ray

    takes(ray, *shlex.split(command)[1:])


def takes(group: Any, name: str, *words: str) -> Any:
    """Has the command itself parse the arguments, which raises for what it does not know, and does nothing."""
    return group.commands[name].make_context(name, list(words))


# ray up ---------------------------------------------------------------------------------------------------------------

SSH = r"""
    import os, re, subprocess, sys
    words = sys.argv[1:]
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("-o", "-i") else words[1:]
    user, _, host = words.pop(0).partition("@")
    (command,) = re.findall(r"^bash --login -c -i 'source ~/.bashrc; .*? && \((.*)\)'$", " ".join(words))
    command = command.replace("'\"'\"'", "'")
    hosts = os.environ["HOSTS"]
    with open(f"{hosts}/log", "a") as log:
        print(user, host, re.sub("export [^;]*; ?", "", command), sep="\t", file=log)
    if "ray start --head" in command:
        if not os.path.exists(f"{hosts}/{host}/env"):
            os.symlink(os.environ["ENV"], f"{hosts}/{host}/env")
        sys.exit(subprocess.call(["bash", "-c", command], env={**os.environ, "HOME": f"{hosts}/{host}"}))
"""

RSYNC = r"""
    import os, pathlib, shutil, sys
    *options, source, target = sys.argv[1:]
    hosts = pathlib.Path(os.environ["HOSTS"])
    with open(hosts / "log", "a") as log:
        excluded = [each for option, each in zip(options, options[1:]) if option == "--exclude"]
        print("rsync", source, target, *excluded, sep="\t", file=log)
    if ":" in source:
        sys.exit()
    host, path = target.partition("@")[2].split(":~/")
    there, source = hosts / host / path, os.path.expanduser(source)
    there.parent.mkdir(parents=True, exist_ok=True)
    there.mkdir(exist_ok=True) if os.path.isdir(source) else shutil.copy(source, there)
"""


def test_ray_up_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    asked = yaml.safe_load(block(RAY_UP, "yaml"))
    prepared = prepare_config(asked)
    validate_config(prepared)  # raises for what it does not know
    (nodes,) = prepared["available_node_types"].values()
    assert nodes["min_workers"] == nodes["max_workers"] == len(asked["provider"]["worker_ips"])
    assert prepared["head_start_ray_commands"] == asked["head_start_ray_commands"]
    assert prepared["rsync_exclude"] == [".venv", ".git", "runs"]


@pytest.mark.slow
def test_ray_up_starts_all_machines_and_what_follows_reaches_the_head(ground: Ground) -> None:
    port = next(each for each in iter(lambda: random.randrange(20000, 30000), None) if is_free(each))
    text = block(RAY_UP, "yaml")
    assert (text.count("10.0.0."), text.count("6379")) == (3, 2)
    (ground.folder / "cluster.yaml").write_text(text.replace("10.0.0.", "127.0.0.").replace("6379", str(port)))
    (ground.folder / ".ssh").mkdir()
    (ground.folder / ".ssh" / "id_ed25519").touch()
    (ground.folder / "hosts").mkdir()
    ground.environment |= {"HOSTS": str(ground.folder / "hosts"), "ENV": str(BIN.parent)}
    ground.program("ssh", SSH)
    ground.program("rsync", RSYNC)
    token, up, *rest = block(RAY_UP).splitlines()
    for line in (token, up):
        shell(ground, line)
    assert reached(ground)
    config = yaml.safe_load((ground.folder / "cluster.yaml").read_text())
    (setup,) = config["setup_commands"]
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        kind = "head" if host == "127.0.0.1" else "worker"
        wanted = [setup, *config[f"{kind}_start_ray_commands"]]
        wait_until(partial(heard_by, ground, host, wanted[-1]))
        heard = told_to(ground, host)
        assert heard[heard.index(setup) :][:3] == wanted
        mounts = [words[3:] for words in done(ground) if words[0] == "rsync" and words[2] == f"me@{host}:~/discover/"]
        assert mounts[0] == config["rsync_exclude"]
    for line in rest:
        shell(ground, line)
    search, copy, stop = (shlex.split(line) for line in rest)
    told = done(ground)
    assert ["me", "127.0.0.1", f"tmux new -d bash -c '{search[3]}; exec bash'"] in told
    assert ["rsync", f"me@127.0.0.1:{copy[3]}", copy[4], *config["rsync_exclude"]] in told
    assert told.count(["me", "127.0.0.1", stop[3]]) == 2  # before the start, and at the end


def shell(ground: Ground, line: str) -> None:
    """Runs a line of the page; what it says goes to a file, since Ray's daemons would hold a pipe open."""
    path = ground.folder / "shell.out"
    with path.open("ab") as out:
        code = subprocess.call(
            ["bash", "-c", line], cwd=ground.folder, env=ground.environment, stdout=out, stderr=out, timeout=DEADLINE
        )
    assert code == 0, f"{line}\n{path.read_text()}"


def heard_by(ground: Ground, host: str, command: str) -> bool:
    return command in told_to(ground, host)


def told_to(ground: Ground, host: str) -> list[str]:
    return [words[2] for words in done(ground) if words[:2] == ["me", host]]


def done(ground: Ground) -> list[list[str]]:
    """What ssh and rsync were told: who, where, what; or from, to, without."""
    return [line.split("\t") for line in (ground.folder / "hosts" / "log").read_text().splitlines()]


def reached(ground: Ground) -> bool:
    """Whether a driver on the head reaches it that is told no address, and that there is a token neither."""
    code = "import ray; ray.init('auto', log_to_driver=False); assert ray.is_initialized()"
    environment = {**ground.environment, "HOME": str(ground.folder / "hosts" / "127.0.0.1")}
    return (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "what was to happen did not happen"
        time.sleep(0.1)


# Slurm ----------------------------------------------------------------------------------------------------------------

SCONTROL = r"""
    import sys
    if sys.argv[1:] != ["show", "hostnames", "n[1-2]"]:
        sys.exit("scontrol: not what the test knows")
    sys.stdout.write("n1\nn2\n")  # at once: who reads takes one line and goes
"""

HOSTNAME = """
    import sys
    if sys.argv[1:] != ["--ip-address"]:
        sys.exit("hostname: not what the test knows")
    print("127.0.0.1 fe80::1")
"""

# A step's cores are those of its own request: since Slurm 22.05 that of the job does not count for its steps.
SRUN = """
    import argparse, os, subprocess, sys
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    parser.add_argument("-N", "--nodes", type=int, required=True)
    parser.add_argument("-n", "--ntasks", type=int, required=True)
    parser.add_argument("-c", "--cpus-per-task", default=os.environ.get("SRUN_CPUS_PER_TASK", "1"))
    parser.add_argument("-w", "--nodelist")
    parser.add_argument("-x", "--exclude")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    step = parser.parse_args()
    nodes = [each for each in ("n1", "n2") if step.nodelist in (None, each) and each != step.exclude]
    if len(nodes) != step.nodes or step.ntasks != step.nodes:
        sys.exit(f"srun: {step.nodes} nodes and {step.ntasks} tasks are asked for, nodes are {nodes}")
    with open("steps", "a") as steps:
        print(*nodes, step.cpus_per_task, *step.command[:2], file=steps)
    tasks = [subprocess.Popen(step.command, env={**os.environ, "SLURMD_NODENAME": each}) for each in nodes]
    sys.exit(max(each.wait() for each in tasks))
"""


@pytest.fixture
def allocation(ground: Ground) -> Ground:
    """Two nodes, both this machine, for a job that runs there again and again."""
    job = next(each for each in iter(lambda: random.randrange(10**6), None) if is_free(20000 + each % 10000))
    for name, text in {"scontrol": SCONTROL, "hostname": HOSTNAME, "srun": SRUN}.items():
        ground.program(name, text)
    ground.environment |= {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_SUBMIT_DIR": str(ground.folder),
    }
    (ground.folder / "search.sbatch").write_text(block(SLURM, "bash"))
    (ground.folder / ".venv" / "bin").mkdir(parents=True)
    (ground.folder / ".venv" / "bin" / "activate").write_text("")
    cache = artefact.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    (ground.folder / ".cache").symlink_to(cache)  # compiled once a machine, here as there
    return ground


def test_sbatch_reads_the_options_of_the_batch_script() -> None:
    first, *lines = block(SLURM, "bash").splitlines()
    assert first == "#!/bin/bash"
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert lines[: len(options)] == [f"#SBATCH {each}" for each in options]  # those after a command do not count
    assert {each.split("=")[0] for each in options} == {
        *("--job-name", "--nodes", "--ntasks-per-node", "--cpus-per-task"),
        *("--time", "--signal", "--requeue", "--open-mode"),
    }
    (warned,) = re.findall(r"--signal=B:TERM@(\d+)", "\n".join(options))
    (hours,) = re.findall(r"--time=(\d+):00:00", "\n".join(options))
    (budget,) = re.findall(r"--time (\d+)h", block(SLURM, "bash"))
    assert int(warned) >= 60  # seconds; the work in hand must be done by then
    assert int(budget) < int(hours)


@pytest.mark.slow
def test_the_batch_script_searches_on_all_nodes_ends_when_told_and_goes_on_when_queued_again(
    allocation: Ground,
) -> None:
    out = allocation.folder / "runs" / f"slurm-{allocation.environment['SLURM_JOB_ID']}"
    run_until(allocation, lambda: len(stored(out)) >= 1)
    first = stored(out)
    run_until(allocation, lambda: len(stored(out)) > len(first))
    assert stored(out)[: len(first)] == first
    steps = ["n1 2 hostname --ip-address", "n1 2 ray start", "n2 2 ray start"]
    assert (allocation.folder / "steps").read_text().splitlines() == steps * 2


def run_until(allocation: Ground, enough: Callable[[], bool]) -> None:
    """Runs the job until it has done enough with workers on both nodes, then ends it as Slurm does: TERM for the script
    alone, as --signal=B:TERM@60 has it, and death for what is left when the script is over."""
    path = allocation.folder / "slurm.out"
    with path.open("ab") as out:
        script = subprocess.Popen(
            ["bash", "search.sbatch"], cwd=allocation.folder, env=allocation.environment, stdout=out, stderr=out
        )
    try:
        wait_until(lambda: script.poll() is not None or (enough() and worked_on(allocation) == {"n1", "n2"}))
        assert script.poll() is None, path.read_text()
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=60) == 0, path.read_text()
    finally:
        script.kill()
        allocation.end()


def worked_on(allocation: Ground) -> set[str]:
    return {each["SLURMD_NODENAME"] for each in allocation.processes(b"ray::RayActor").values()}


def stored(out: Path) -> list[Generation]:
    if not (out / "archive.sqlite").exists():
        return []
    with Archive.read(out / "archive.sqlite") as archive:
        return list(archive.generations())


# KubeRay --------------------------------------------------------------------------------------------------------------

KNOWN = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"},
    "rayClusterSpec": {"rayVersion", "headGroupSpec", "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
"""What the page may use of KubeRay's custom resource `ray.io/v1`: backoffLimit is of KubeRay 1.2."""


def job() -> dict[str, Any]:
    return dict(yaml.safe_load(block(KUBERAY, "yaml")))


def test_the_ray_job_has_the_fields_of_the_custom_resource() -> None:
    spec = job()["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]
    assert (job()["apiVersion"], job()["kind"]) == ("ray.io/v1", "RayJob")
    found = {"RayJob": job(), "spec": spec, "rayClusterSpec": cluster, "headGroupSpec": head}
    assert {name: set(each) for name, each in {**found, "workerGroupSpecs": workers}.items()} == KNOWN
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    from ray.scripts.scripts import cli as ray

    for group in (head, workers):
        words = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        takes(ray, "start", *words)
        assert all(isinstance(each, str) for each in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] in block(KUBERAY)
    pod = head["template"]["spec"]
    (volume,) = pod["volumes"]
    (mounted,) = pod["containers"][0]["volumeMounts"]
    assert mounted["name"] == volume["name"]
    assert f"{mounted['mountPath']}/k8s/" in spec["entrypoint"]
    assert pod["securityContext"] == {"fsGroup": 100}  # `users`, the group of the user of Ray's images
    assert job()["metadata"]["name"] in block(KUBERAY).splitlines()[-1]


def test_the_image_has_the_versions_that_the_project_pins_and_what_the_job_names() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    lines = block(KUBERAY, "dockerfile").splitlines()
    assert lines[0] == f"FROM rayproject/ray:{pinned['ray']}-py311-cpu"
    assert job()["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    assert "COPY constraints.txt dist/*.whl /tmp/dist/" in lines
    assert "--wheel-dir dist ." in block(KUBERAY).splitlines()[0]
    assert "/home/ray/installed.yaml" in lines[-1]
    assert "--runtime-env /home/ray/installed.yaml" in job()["spec"]["entrypoint"]


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("name", ["search", "resume"])
def test_the_entrypoint_searches_first_and_resumes_ever_after(ground: Ground, name: str, code: int) -> None:
    """KubeRay puts it into a script for bash; `ray job submit` quotes its words again for the sh of the head."""
    entrypoint = job()["spec"]["entrypoint"]
    assert entrypoint.count("/runs/k8s") == 3
    runs = ground.folder / "runs"
    runs.mkdir()
    if name == "resume":
        (runs / "manifest.json").touch()
    ground.program("ray", "import shlex, sys\nprint(shlex.join(sys.argv[sys.argv.index('--') + 1 :]))\n")
    ground.program("discover", f"import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit({code})\n")
    script = f"ray job submit --address http://head:8265 --no-wait -- {entrypoint.replace('/runs/k8s', str(runs))} ;"
    submitted = subprocess.check_output(["bash", "-c", script], env=ground.environment, text=True)
    ran = subprocess.run(submitted, shell=True, env=ground.environment, capture_output=True, text=True)
    assert ran.returncode == code
    (called,) = [json.loads(line) for line in ran.stdout.splitlines()]  # once, whatever came of it
    assert called[0] == name
    assert str(runs) in called
    takes(typer.main.get_command(cli.app), *called)
