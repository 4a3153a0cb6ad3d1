#!/usr/bin/env bash
# A SLURM of one machine, on this one, in a scratch folder: tests/slurm.sh start FOLDER, tests/slurm.sh stop FOLDER.
# Needs root, and Debian's slurm-wlm and munge, which `start` installs where they are missing.
set -euo pipefail
command=$1 folder=$2

if [ "$command" = stop ]; then
  for name in slurmd slurmctld; do
    if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
  done
  if [ -f "$folder/munged.pid" ]; then kill "$(cat "$folder/munged.pid")" 2>/dev/null || true; fi
  exit 0
fi

"$(dirname "$0")/debian.sh" "$folder/apt.log" slurmctld=slurm-wlm munged=munge
host=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool" /run/munge
chown munge: /run/munge
[ -f /etc/munge/munge.key ] || mungekey --create --keyfile /etc/munge/munge.key
chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
if ! munge -n >/dev/null 2>&1; then
  su munge -s /bin/bash -c "munged --force"
  cp /run/munge/munged.pid "$folder/munged.pid"
fi
slurmctld
slurmd
for _ in $(seq 100); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 0.2
done
echo "slurm: no idle machine after 20 s; see $folder/*.log" >&2
exit 1
