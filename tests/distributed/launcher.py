"""Runs training scenarios in forked processes, one after another, as they come in on stdin.

A line of input is a scenario in JSON: a training run, the same through the command with its own way to
end, or a script that every rank runs. torch is
imported once; each rank of each scenario is a fork of this process. A scenario may name a rank that
ends itself at a step: by SIGKILL in the midst of the step, of a save or some time after one began, or by
SIGTERM, as a machine's scheduler would. A line of output is the list of the ranks' exit codes.
"""

import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

import transformers

import mmfast.train.checkpoint
import mmfast.train.trainer
from mmfast.cli import run_verb
from mmfast.train import load_train_config, train


def main():
    assert transformers.LlamaForCausalLM  # loaded here, once, instead of in every fork
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


def run(scenario):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = {fork_rank(scenario, rank, port): rank for rank in range(scenario["world_size"])}
    codes = [0] * len(pids)
    while pids:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        codes[pids.pop(pid)] = code
        # Usually a killed rank takes the others along, as torchrun would see to.
        if code == -signal.SIGKILL and scenario.get("die", {}).get("others") != "live":
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return codes


def fork_rank(scenario, rank, port):
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(scenario["world_size"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    code = 1
    try:
        if "script" in scenario:
            runpy.run_path(scenario["script"], run_name="__main__")
        else:
            if scenario.get("die", {}).get("rank") == rank:
                arm(scenario["die"])
            if scenario.get("command"):
                run_verb("train", ["tiny", *scenario["overrides"]])
            config = load_train_config("tiny", scenario["overrides"])
            train(config, resume=scenario.get("resume", "auto"))
        code = 0
    except SystemExit as ending:
        code = ending.code
    except BaseException:  # noqa: BLE001 -- a fork must never return into the parent's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def arm(die):
    """Lets this process end itself in the `call`-th call of a function of the trainer."""
    module, name, number = {
        "step": (mmfast.train.trainer, "gradient_norm", signal.SIGKILL),
        "save": (mmfast.train.checkpoint, "publish", signal.SIGKILL),
        "saving": (mmfast.train.checkpoint.CheckpointWriter, "save", signal.SIGKILL),
        "sigterm": (mmfast.train.trainer, "gradient_norm", signal.SIGTERM),
    }[die["at"]]
    original, calls = getattr(module, name), []

    def hooked(*args, **kwargs):
        calls.append(None)
        if len(calls) == die["call"] and "wait" in die:
            threading.Timer(die["wait"], os.kill, (os.getpid(), number)).start()
        elif len(calls) == die["call"]:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(module, name, hooked)


if __name__ == "__main__":
    main()
