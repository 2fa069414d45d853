"""What everything stands on, without torch: errors, files, flags, run folders, the screen; metrics of texts; the
student's functions.

Start with errors.py: whatever a user can mend is a `UserError`, one sentence.
"""
