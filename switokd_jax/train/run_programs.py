"""What the traces of a run depend on: the key of its programs in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from switokd_jax.program_cache import LowerByName, ProgramCache, trace
from switokd_jax.train.process_checks import own_code, run_facts
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir.provenance import code_files

# Arguments of the programs, as the state and the batches are.
ARGUMENTS = ("config.seed", "fingerprint of the data")


def lower_by_name(
    run: RunSpec, config: Mapping[str, Any], record: Mapping[str, Any], programs: ProgramCache | None
) -> LowerByName:
    """Returns the function that traces the programs of a run, or finds them traced.

    Args:
      run: all that is static in the run.
      config: its config, as JSON values.
      record: the provenance of this start.
      programs: of earlier starts; None to keep none.
    """
    if programs is None:
        return trace
    facts = {name: value for name, value in run_facts(config, record).items() if name not in ARGUMENTS}
    facts |= {"data": {name: value for name, value in record["data"].items() if name != "fingerprint"}}
    facts |= {"devices": record["devices"], "steps": [run.steps_per_epoch, run.total_steps]}
    return programs.of_run(facts, code_files(own_code(run)))
