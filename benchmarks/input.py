def define_flags(flags):
    pass
