"""The room that ties all others together: trials, resume, the manifest."""
