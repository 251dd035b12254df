"""Run `python -m stage1_extract.demo`: write the data of the demo, or train its checkpoint."""

if __name__ == "__main__":
    from configs.begin import end_quietly_on_signals

    end_quietly_on_signals()  # before anything slow is imported

    from configs.cli import main
    from stage1_extract.demo.cli import group

    main(group)
