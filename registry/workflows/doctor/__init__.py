"""``doctor``: what a crash or a careless hand left, and what can be done about it.

Each module examines one thing and yields problems. A problem says what was found and what a person can
do; where something can be mended without a person's judgement it carries the deed, which looks again
before it acts. Nothing that the catalog refers to is ever deleted: damaged bytes are put aside.
"""

from .examination import Examination, examine
from .problem import Code, Mending, Problem

__all__ = ["Code", "Examination", "Mending", "Problem", "examine"]
