"""What arrives: schedules of requests and the program that every device runs."""
