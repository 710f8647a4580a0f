"""Imported first: jsonschema asks for an optional package that compiles grammars for four seconds, and finds none."""

import sys
from types import ModuleType

NAME = "rfc3987_syntax"
sys.modules[NAME] = ModuleType(NAME)  # empty: what is imported from it is not there
