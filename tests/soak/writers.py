"""Two processes at one folder: one works, and the other is refused, waits, or only reads."""

import numpy as np

from tests.soak import kills, runs, server, trials

READERS = {  # Of a run under way, by what it is.
    "toy": ("evaluate out --episodes=2", "report out --out=new", "export out --out=new.x"),
    "gym": ("evaluate out --episodes=2", "report out --out=new"),
    "atari": ("report out --out=new", "evaluate out --episodes=1 --max-steps=20"),
    "sft": (
        "generate --model=out --prompt=1+1= --max-new-tokens=2",
        "export out --out=new",
        "evaluate out --episodes=4 --max-new-tokens=2",
        "report out --out=new",
    ),
    "reward_model": ("evaluate out --episodes=4", "report out --out=new"),
    "sweep": ("report out --out=new",),
}


def attempt(workshop: trials.Workshop, random: np.random.Generator, number: int) -> trials.Attempt:
    """Gives a second command while the first is at work."""
    names = list(runs.KINDS)
    name = names[number % len(names)]
    reads = number // len(names) % 2 == 1 and name in READERS
    expected = runs.reference(workshop, name)
    scratch = workshop.scratch()
    out = scratch / runs.out_name(name)
    call = workshop.call(scratch, *runs.begin(workshop, name, out.name))
    first = server.Command(call)
    kills.wait_for(first, name, "anywhere", out, expected.seconds, random)
    if reads:
        commands = READERS[name]
        arguments = tuple(commands[random.integers(len(commands))].split())
    else:
        arguments = runs.begin_or_go_on(workshop, name, out)
    second = server.run(
        workshop.call(scratch, *arguments, log=workshop.home / "second"), kills.PATIENCE
    )
    outcome = first.finish(kills.PATIENCE)
    what = f"{name}, and beside it {' '.join(arguments)}"
    judged = trials.judged(f"{what}: the second", second, (0, 2))
    if judged.fault:
        return judged
    # Who comes first may be either, where nothing was there yet.
    statuses = (0, 2) if not reads and second.status == 0 else (0,)
    judged = trials.judged(f"{what}: the first", outcome, statuses)
    if judged.fault:
        return judged
    if reads:
        trials.remove(scratch / "new")
    difference = runs.difference(name, expected, out, None)
    return trials.Attempt(what=what, fault="wrong" if difference else "", said=difference)


CATEGORY = trials.Category("writers", 60, attempt)
