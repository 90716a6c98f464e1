#!/bin/bash
# How does a study use many GPUs of a Slurm cluster, where no job may run for long?
#
# Command:   export STUDY=studies/digits.py STUDY_STORAGE=postgresql://USER@HOST/DATABASE STUDY_ARTIFACTS=$PWD/artifacts
#            sbatch studies/clusters/slurm.sh --set trials=200        # what follows goes to the study
#            optuna-nas report $STUDY --storage $STUDY_STORAGE --set trials=200
# Cost:      at most 32 tasks of 4 hours with a GPU each, 8 at a time; a task that finds the total reached ends at once
# Expected:  tasks end with exit code 0 once the total is reached; until then, each ends with 130 shortly before its
#            time limit (Slurm says FAILED), and the next of the array goes on with its trial from the checkpoint
#
# Submit it where Python's environment is active, from a folder that all nodes see: tasks start there, with the same
# PATH, and `runs/` is there. The database must be a server that all nodes reach.
#
# Its password belongs in ~/.pgpass (a line HOST:PORT:DATABASE:USER:PASSWORD; chmod 600), or in PGPASSWORD: the driver
# of PostgreSQL looks there. An address with a password would be on a command line, which all users of a node see.
#
# Where MLFLOW_TRACKING_URI is the address of an MLflow server, it shows the study as it runs. Else, afterwards:
#            optuna-nas mirror $STUDY --storage $STUDY_STORAGE --set trials=200

# More tasks than run at a time, so that one that reaches its time limit has a successor.
#SBATCH --job-name=study
#SBATCH --array=1-32%8
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
# Minutes for a checkpoint; Slurm itself may be a minute early. "B:" is for this shell alone, so the worker becomes it.
#SBATCH --signal=B:TERM@300
# Tasks that are preempted, or whose node dies, come back under the same number.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

set -eu

: "${STUDY:?must be the path of a study file; export it}"
: "${STUDY_STORAGE:?must be the address of a database server, as postgresql://USER@HOST/DATABASE; export it}"
: "${STUDY_ARTIFACTS:?must be a folder that all nodes see, or s3://BUCKET; export it}"
case $STUDY_STORAGE in
*://*:*@* | *password=*)
    echo "STUDY_STORAGE must hold no password, since all users of the node would see it; put it into ~/.pgpass" >&2
    exit 2
    ;;
esac

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# Does nothing where another task was first.
optuna-nas create "$STUDY" --storage "$STUDY_STORAGE" "$@"

if [ -z "${MLFLOW_TRACKING_URI:-}" ]; then
    set -- --no-mlflow "$@" # or all tasks would write one sqlite file over the network
fi
# In place of this shell, so that Slurm's signal reaches it, and Slurm gets its exit code.
exec optuna-nas worker "$STUDY" --storage "$STUDY_STORAGE" --artifacts "$STUDY_ARTIFACTS" "$@"
