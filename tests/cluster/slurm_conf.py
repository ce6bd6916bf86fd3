"""The configuration of a Slurm of one node that lives in one folder and on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

NODE = "node"

# cred_expire is also how long Slurm holds back a requeued job: 120 s unless told, 5 s at the least.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PriorityType=priority/basic
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
OverTimeLimit=0
InactiveLimit=0
MinJobAge=3600
CompleteWait=0
GresTypes=gpu
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Default=YES Nodes={node} MaxTime=INFINITE State=UP
PartitionName=gpu Default=NO Nodes={node} MaxTime=INFINITE State=UP
"""

# A GPU must be a device here; a count alone, with Flags=CountOnly too, is "reported lower than configured".
GRES_CONF = "".join(f"Name=gpu File=/dev/{device}\n" for device in ("null", "zero", "full", "random"))


def write_configuration(folder: Path, user: str) -> Path:
    """Write slurm.conf, what lies beside it and the key of munge; return slurm.conf."""
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    (folder / "gres.conf").write_text(GRES_CONF)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    controller_port, node_port = free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(
            host=socket.gethostname().split(".")[0],
            user=user,
            folder=folder,
            node=NODE,
            controller_port=controller_port,
            node_port=node_port,
        )
    )
    return conf


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
