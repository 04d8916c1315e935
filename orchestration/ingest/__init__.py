"""From the files of a dialogue log to the landing: readers, validation, scrubbing, pseudonyms, quarantine.

Here: everything that touches raw text and raw ids. Not here: what the log means (`transforms`), scheduling
(`orchestration.assets`).
"""
