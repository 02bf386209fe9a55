"""The parts of fine-tuning: batches, optimisers, the step, checkpoints, throughput. `deft_tsds.finetune` joins them."""
