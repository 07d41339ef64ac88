"""`scripts/soak`: random tasks of all kinds and sizes on all backends, while workers are killed, stopped and starved.

    scripts/soak [--seconds 120 | --minutes M | --tasks N --faults N] [--seed S] [--rate FAULTS_A_SECOND]

Exits with status 1, the seed and the command to run again where anything does not hold.
"""

from __future__ import annotations

import argparse
import random
import sys

from soak import sabotage
from soak.places import PLACES
from soak.runner import ROUND_LIMIT, Plan, Run, prepare


def main() -> int:
    """Run, and tell what came of it."""
    parser = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="how long it goes on (%(default)g)")
    parser.add_argument("--minutes", type=float, help="the same, in minutes")
    parser.add_argument("--tasks", type=int, default=0, help="go on until so many tasks have ended")
    parser.add_argument("--faults", type=int, default=0, help="and so many faults were injected")
    parser.add_argument("--rate", type=float, default=50.0, help="faults a second that it aims at (%(default)g)")
    parser.add_argument("--seed", type=int, help="of all that is drawn; one is made up if it is not given")
    parser.add_argument("--from-round", type=int, default=0, help="leave out the rounds before this one")
    parser.add_argument("--most-bytes", type=int, default=8 << 20, help="of one payload (%(default)d)")
    parser.add_argument("--round-limit", type=float, default=ROUND_LIMIT, help="seconds of one round (%(default)g)")
    parser.add_argument("--round-seconds", type=float, help="of load in a round; drawn for each if it is not given")
    parser.add_argument("--only", choices=[place.name for place in PLACES], default="", help="one place for new lives")
    parser.add_argument("--quiet", action="store_true", help="tell the summary alone")
    parser.add_argument("--sabotage", choices=sabotage.WAYS, default="", help="break something, to see it found")
    parser.add_argument("--log", metavar="FILE", help="write what the library logs there, all of it")
    options = parser.parse_args()
    if options.rate <= 0 or options.tasks < 0 or options.faults < 0 or options.most_bytes < 64:
        parser.error("--rate must be above 0, --tasks and --faults at least 0, --most-bytes at least 64")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    seconds = options.seconds if options.minutes is None else 60 * options.minutes

    prepare(options.log)
    run = Run(
        Plan(
            seed=seed,
            seconds=seconds,
            tasks=options.tasks,
            faults=options.faults,
            rate=options.rate,
            most_bytes=options.most_bytes,
            from_round=options.from_round,
            only=options.only or sabotage.wants(options.sabotage),
            sabotage=options.sabotage,
            quiet=options.quiet,
            limit=options.round_limit,
            load=options.round_seconds,
        )
    )
    print(f"soak: seed {seed}", flush=True)
    held = run.run()
    print(run.summary(), flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
