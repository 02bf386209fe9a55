"""Fine-tuning T5: `finetune` upon batches, optimisers, the compiled step and the loop; what it costs: `footprint`."""
