# shellcheck shell=bash disable=SC2034
# Where the stages with many jobs run.

# Options
launcher=local  # local (processes of this machine), slurm (a cluster, through submitit) or submitit-local (tries that path here)
launcher_options=  # for submitit, e.g. slurm_partition=long,timeout_min=600,mem_gb=8
# End of options
