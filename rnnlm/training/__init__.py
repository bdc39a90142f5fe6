"""Training, for both back ends.

Read loop.py first: it is the whole training on one page. Around it, a file for each subject:

    config, cli               the options, and the command line that is derived from them
    batches, initial          the text as chunks, the weights to start from
    trainer                   what the loop needs of a back end: c_trainer (c_parameters: what the optimizer changes),
                              torch_trainer (torch_loss: loss and gradients; torch_evaluation: the loss of a whole
                              text; torch_inputs, torch_graph, torch_recurrence: on a GPU)
    schedule                  learning rate, evaluations, the end
    beginning, lock           how a run begins; no run destroys another's files
    resume_options, init_from the options of a run that is resumed; starting from the weights of another
    progress, resume          how far the run is, and what it continues from (state_file: the format of that file)
    run, runfiles             the parts of a run, and the files that it writes: metrics, curve, tensorboard
    reporting, stopping       what the terminal shows, how a run ends early
    distributed, sharing      several processes; a text that they evaluate together
"""
