"""Extraction: tasks, the words they are asked in, answers, parsing, grounding, scoring.

Throughout, what is extracted is a list of dicts:
NER ``{"text", "type"}``; RE ``{"head", "relation", "tail"}``;
EE ``{"type", "trigger", "arguments": [{"text", "role"}]}``.
A schema is a list of labels; for EE a list of ``{"type", "roles": [...]}``.
"""
