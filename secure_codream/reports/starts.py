"""What dreams began as: made again from the record, by the public rule and the seed that nobody chose.

No file keeps start images, since whoever has the record can make them (protocol 2, section 2).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from codream_protocols.charter import derive_plan
from codream_protocols.course import Course
from codream_protocols.courses.codream import CoDream
from codream_protocols.errors import ProtocolError
from codream_protocols.identity import parse_roster
from codream_protocols.record import Trajectory
from codream_protocols.record_file import parse_record, record_name
from secure_codream.configuration.charter_file import read_charter
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError
from secure_codream.reports.files import MalformedRecord, RecordError, bytes_of


def starts_of(record: Path, number: int) -> npt.NDArray[np.float32] | None:
    """The start images (B, C, H, W) of the epoch after `number` certified ones, before anybody moved them.

    None where the folder `record` has no such epoch, where a generator makes the dreams, and where a rule of somebody's
    own made the starts: a page runs no code.

    Raises:
        MissingRecord, MalformedRecord: a record that does not fit; signatures are for `secure-codream verify`.
        RecordError: this machine cannot make its starts, since it decodes other photographs than its parties.
    """
    path, expected = record / record_name(number), "the record of a federation"
    if not path.exists():
        return None
    try:
        roster = parse_roster(bytes_of(record / "roster.json", expected)).roster
        config, charter = read_charter(bytes_of(record / "charter.json", expected), roster)
        if config.code:
            return None
        course = _course(config, record)
        if not isinstance(course, CoDream):
            return None
        kept, _ = parse_record(bytes_of(path, expected))
        plan = derive_plan(charter, course, kept.offer, number)
        begun = Trajectory(plan, course, None, kept.advertisements, kept.start)
    except ProtocolError as error:
        raise MalformedRecord(path, str(error), expected) from error
    return np.asarray(begun.state["dreams"])


def _course(config: FederationConfig, record: Path) -> Course:
    try:
        return make_course(config)
    except ConfigError as error:  # a lack of this machine, not of the record
        raise RecordError(f"{record / 'charter.json'}: {error}") from error
