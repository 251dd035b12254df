"""Run `python -m stage1_extract`."""

if __name__ == "__main__":
    from configs.begin import end_quietly_on_signals

    end_quietly_on_signals()  # before anything slow is imported

    from configs.cli import main
    from stage1_extract.cli import group

    main(group)
