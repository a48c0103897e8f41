"""Fields of TRL's DPOConfig that `dpo.trainer` may set, and those that other keys already decide.

A test compares both tables with DPOConfig, so that a TRL release cannot add or drop a field unnoticed.
"""

from __future__ import annotations

ALLOWED = frozenset(
    """lr_scheduler_kwargs adam_beta1 adam_beta2 adam_epsilon tf32
    activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode neftune_noise_alpha
    torch_empty_cache_steps log_level log_level_replica log_on_each_node dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_timeout full_determinism activation_offloading
    router_aux_loss_coef""".split()
)

# Field -> the key that decides it, or why nothing may.
DERIVED = {
    "output_dir": "name and the run directory",
    "per_device_train_batch_size": "dpo.batch_size",
    "per_device_eval_batch_size": "dpo.batch_size",
    "gradient_accumulation_steps": "dpo.batch_size",
    "auto_find_batch_size": "hardware.token_budget",
    "num_train_epochs": "dpo.epochs",
    "max_steps": "dpo.max_steps",
    "learning_rate": "dpo.learning_rate",
    "lr_scheduler_type": "dpo.scheduler",
    "warmup_steps": "dpo.warmup_ratio",
    "optim": "dpo.optimizer",
    "weight_decay": "dpo.weight_decay",
    "max_grad_norm": "dpo.max_grad_norm",
    "beta": "dpo.beta",
    "loss_type": "the dpo group: dpo=sigmoid, dpo=ipo",
    "loss_weights": "dpo.loss_weights, as of dpo=mpo",
    "label_smoothing": "dpo.label_smoothing, where the loss reads it",
    "label_smoothing_factor": "dpo.label_smoothing, where the loss reads it",
    "discopop_tau": "dpo.discopop_tau of dpo=discopop",
    "f_divergence_type": "dpo.f_divergence_type",
    "f_alpha_divergence_coef": "dpo.f_alpha_divergence_coef",
    "ld_alpha": "dpo.ld_alpha",
    "use_weighting": "dpo.use_weighting",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "hardware.precision",
    "fp16": "hardware.precision",
    "use_cpu": "hardware.device",
    "activation_checkpointing": "hardware.activation_checkpointing",
    "gradient_checkpointing": "hardware.activation_checkpointing",
    "gradient_checkpointing_kwargs": "hardware.activation_checkpointing",
    "max_length": "dataset.max_length",
    "truncation_mode": "dataset.max_length",
    "dataset_num_proc": "the dataset group",
    "disable_dropout": "lora.dropout",
    "logging_strategy": "dpo.log_every",
    "logging_steps": "dpo.log_every",
    "logging_first_step": "dpo.log_every",
    "eval_strategy": "dpo.eval_every",
    "eval_steps": "dpo.eval_every",
    "eval_on_start": "dpo.eval_every",
    "save_strategy": "dpo.save_every",
    "save_steps": "dpo.save_every",
    "save_total_limit": "dpo.keep_checkpoints",
    "resume_from_checkpoint": "resume",
    "report_to": "the tracking group",
    "run_name": "name",
    "project": "the tracking group",
    "trust_remote_code": "the model group",
    "model_init_kwargs": "the model group",
    "pad_token": "the model group",
    "precompute_ref_log_probs": "the reference cache",
    "precompute_ref_batch_size": "hardware.token_budget",
}

# Fields that would break a promise (exact resume, one step whatever the split, safe saves) or do nothing here.
REFUSED = frozenset(
    """average_tokens_across_devices bf16_full_eval fp16_full_eval use_liger_kernel liger_kernel_config use_cache
    logging_nan_inf_filter include_num_input_tokens_seen disable_tqdm trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_delay prediction_loss_only eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_on_each_node
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push
    hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint accelerator_config parallelism_config dataloader_drop_last
    dataloader_in_order remove_unused_columns label_names train_sampling_strategy length_column_name
    ddp_find_unused_parameters ddp_backend fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval
    do_predict local_rank padding_free pad_to_multiple_of sync_ref_model ref_model_mixup_alpha
    ref_model_sync_steps optim_args optim_target_modules""".split()
)
