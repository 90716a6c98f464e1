"""The files for clusters start what the command line has, and pass on signals and exit codes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import typer
import yaml

from optuna_nas.cli import app

REPOSITORY = Path(__file__).parents[2]
SLURM = REPOSITORY / "studies" / "clusters" / "slurm.sh"
KUBERNETES = REPOSITORY / "studies" / "clusters" / "kubernetes.yaml"
COMMANDS = typer.main.get_command(app).commands
DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"

# Writes down what it is called with; as a worker it waits for SIGTERM, unless it is told an exit code.
STUB = """#!/bin/bash
printf '%s\\n' "$@" > "$RECORDS/$1"
printf '%s' "$OMP_NUM_THREADS" > "$RECORDS/threads"
if [ "$1" != worker ]; then exit "${CREATE_CODE:-0}"; fi
if [ -n "${WORKER_CODE:-}" ]; then exit "$WORKER_CODE"; fi
trap 'kill $!; touch "$RECORDS/told"; exit 130' TERM
sleep 60 &
touch "$RECORDS/ready"
wait
"""


def understood(words):
    """Return what a command line means; fails where it is none."""
    command, *arguments = words
    assert command in COMMANDS
    return COMMANDS[command].make_context(command, list(arguments)).params


def command_lines(text):
    """Return the words after `optuna-nas` of every command line of a file, those in comments too."""
    joined = re.sub(r"\\\n[#\s]*", "", text)
    lines = re.findall(r"(?<![\w/-])optuna-nas ([a-z].*)", joined)
    return [[word for word in shlex.split(line, comments=True) if word != "$@"] for line in lines]


# -- Slurm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "optuna-nas"
    stub.write_text(STUB)
    stub.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "RECORDS": str(tmp_path),
        "STUDY": "my studies/digits.py",
        "STUDY_STORAGE": "postgresql://me@database:5432/nas",
        "STUDY_ARTIFACTS": "s3://bucket",
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_CPUS_PER_TASK": "3",
    }


def slurm(environment, *arguments):
    command = ["bash", str(SLURM), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def told(environment, command):
    """Return the command line of a call of the stub."""
    return (Path(environment["RECORDS"]) / command).read_text().splitlines()


def sbatch_options():
    lines = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def seconds(text):
    hours, minutes, rest = map(int, text.split(":"))
    return hours * 3600 + minutes * 60 + rest


def test_the_slurm_script_is_one_of_bash():
    assert SLURM.read_text().startswith("#!/bin/bash\n")
    checked = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_slurm_reads_all_of_its_options():
    lines = SLURM.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if "SBATCH" in line]
    assert max(options) < first_command  # Slurm reads none after it
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number]) for number in options)


def test_a_task_has_one_gpu_a_successor_and_time_for_a_checkpoint():
    options = sbatch_options()
    assert (options["nodes"], options["ntasks"], options["gres"]) == ("1", "1", "gpu:1")
    first, last, at_a_time = map(int, re.fullmatch(r"(\d+)-(\d+)%(\d+)", options["array"]).groups())
    assert last - first + 1 > at_a_time
    assert "requeue" in options
    warned = int(re.fullmatch(r"B:TERM@(\d+)", options["signal"])[1])
    assert 180 <= warned < seconds(options["time"]) / 2
    assert {"%A", "%a"} <= set(re.findall("%.", options["output"]))  # a log for each task


def test_the_slurm_script_creates_the_study_and_becomes_a_worker(environment):
    done = slurm(environment | {"WORKER_CODE": "0"}, "--set", "name=two words")
    assert (done.returncode, done.stderr) == (0, "")
    created, worked = (understood(told(environment, command)) for command in ("create", "worker"))
    for name, value in (
        ("study", Path(environment["STUDY"])),
        ("storage", environment["STUDY_STORAGE"]),
        ("settings", ["name=two words"]),
    ):
        assert created[name] == worked[name] == value
    assert worked["artifacts"] == environment["STUDY_ARTIFACTS"]
    assert told(environment, "threads") == ["3"]


def test_the_study_goes_to_mlflow_where_the_environment_names_a_server(environment):
    environment["WORKER_CODE"] = "0"
    slurm(environment)
    assert understood(told(environment, "worker"))["no_mlflow"]
    slurm(environment | {"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert not understood(told(environment, "worker"))["no_mlflow"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_the_worker_is_that_of_the_task(environment, code):
    assert slurm(environment | {"WORKER_CODE": str(code)}).returncode == code


def test_no_worker_begins_where_the_study_cannot_be_created(environment):
    assert slurm(environment | {"CREATE_CODE": "2"}).returncode == 2
    assert not (Path(environment["RECORDS"]) / "worker").exists()


def test_sigterm_to_the_slurm_script_reaches_the_worker(environment):
    records = Path(environment["RECORDS"])
    # A group of its own, so that a worker which the signal does not reach ends with the test.
    process = subprocess.Popen(["bash", str(SLURM)], env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not (records / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        assert (records / "told").exists()
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("name", ["STUDY", "STUDY_STORAGE", "STUDY_ARTIFACTS"])
@pytest.mark.parametrize("empty", [True, False])
def test_what_is_missing_is_named_before_anything_starts(environment, name, empty):
    del environment[name]
    done = slurm(environment | ({name: ""} if empty else {}))
    assert done.returncode not in (0, 130)
    assert re.search(rf"\b{name}: must be .*; export it$", done.stderr.strip())
    assert not (Path(environment["RECORDS"]) / "create").exists()


@pytest.mark.parametrize(
    "address", ["postgresql://me:hidden@host/nas", "postgresql://host/nas?user=me&password=hidden"]
)
def test_a_password_on_the_command_line_is_refused_and_not_shown(environment, address):
    done = slurm(environment | {"STUDY_STORAGE": address})
    assert done.returncode == 2
    assert "~/.pgpass" in done.stderr
    assert "hidden" not in done.stderr + done.stdout
    assert not (Path(environment["RECORDS"]) / "create").exists()


# -- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def job():
    (document,) = yaml.safe_load_all(KUBERNETES.read_text())
    return document


@pytest.fixture
def pod(job):
    return job["spec"]["template"]["spec"]


def containers(pod):
    return [*pod["initContainers"], *pod["containers"]]


def test_the_manifest_is_a_job(job, pod):
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert re.fullmatch(DNS_LABEL, job["metadata"]["name"])
    assert pod["restartPolicy"] in ("OnFailure", "Never")
    names = [container["name"] for container in containers(pod)]
    assert len(set(names)) == len(names)
    for container in containers(pod):
        assert re.fullmatch(DNS_LABEL, container["name"])
        assert container["image"]
        assert all(isinstance(word, str) for word in container["args"])
        assert all(isinstance(variable.get("value", ""), str) for variable in container["env"])


def test_the_job_is_a_queue_of_work_that_survives_many_restarts(job, pod):
    assert "completions" not in job["spec"]
    assert "completionMode" not in job["spec"]
    assert job["spec"]["parallelism"] > 1
    assert job["spec"]["backoffLimit"] >= 5 * job["spec"]["parallelism"]
    assert pod["restartPolicy"] == "OnFailure"  # so that 130 is tried again
    assert pod["terminationGracePeriodSeconds"] >= 180


def test_every_pod_creates_the_study_and_then_works_with_one_gpu(pod):
    (create,), (worker,) = pod["initContainers"], pod["containers"]
    assert (create["args"][0], worker["args"][0]) == ("create", "worker")
    assert create["image"] == worker["image"]
    for container in (create, worker):
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in create["resources"]["limits"]


def test_containers_start_what_the_image_starts(pod):
    entrypoint = re.search(r"^ENTRYPOINT (.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert json.loads(entrypoint) == ["optuna-nas"]
    assert all("command" not in container for container in containers(pod))


def test_the_study_is_a_file_of_the_config_map_and_all_that_is_mounted_is_there(pod):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in containers(pod):
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        (study,) = [mount for mount in container["volumeMounts"] if "configMap" in volumes[mount["name"]]]
        path = understood(container["args"])["study"]
        assert str(path.parent) == study["mountPath"]
        name = volumes[study["name"]]["configMap"]["name"]
        (created,) = re.findall(rf"create configmap {name} --from-file=(\S+)", KUBERNETES.read_text())
        assert (REPOSITORY / created).is_file()
        assert Path(created).name == path.name


def test_the_password_comes_from_a_secret_and_is_in_no_address(pod):
    for container in containers(pod):
        variables = {variable["name"]: variable for variable in container["env"]}
        secret = variables["PGPASSWORD"]["valueFrom"]["secretKeyRef"]
        assert f"create secret generic {secret['name']} --from-file={secret['key']}=" in KUBERNETES.read_text()
        (name,) = re.fullmatch(r"\$\((\w+)\)", understood(container["args"])["storage"]).groups()
        assert re.fullmatch(r"postgresql://[^:@/]+@[^@]+", variables[name]["value"])
        for other in container["envFrom"]:
            assert f"create secret generic {other['secretRef']['name']} " in KUBERNETES.read_text()


def test_creation_worker_and_report_speak_of_one_study(pod):
    created, worked = (understood(container["args"]) for container in containers(pod))
    assert created["study"] == worked["study"]
    assert created["storage"] == worked["storage"]
    assert worked["artifacts"].startswith("s3://")
    (address,) = {v["value"] for container in containers(pod) for v in container["env"] if "value" in v}
    for words in command_lines(KUBERNETES.read_text()):
        shown = understood(words)
        assert Path(shown["study"]).name == worked["study"].name
        assert shown["storage"] == address
        assert shown["settings"] == created["settings"] == worked["settings"]


# -- both ---------------------------------------------------------------------------------------------------------


def test_every_command_line_is_one_that_exists(pod):
    of_slurm = command_lines(SLURM.read_text())
    of_kubernetes = command_lines(KUBERNETES.read_text()) + [container["args"] for container in containers(pod)]
    for lines in (of_slurm, of_kubernetes):
        assert {words[0] for words in lines} == {"create", "worker", "report", "mirror"}
        for words in lines:
            assert understood(words)["storage"]


def test_lines_are_of_a_length_to_be_read():
    for file in (SLURM, KUBERNETES):
        assert max(map(len, file.read_text().splitlines())) <= 120
