"""The pretend world: the real brain under thousands of fault schedules."""
