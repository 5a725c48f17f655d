"""The frame of a training: its folder and processes, checkpoints, random numbers, averages, schedules."""
