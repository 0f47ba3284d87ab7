"""The rules of training and the tests that hold them: the source of docs/reference/training-rules.md.

Invariant: each rule has a test, and each test exists (tests/meta/test_training_rules.py). A rule that is added here
comes with a test that a common shortcut fails. What a topic has beside its rules is in `training_notes.py`.
"""

from __future__ import annotations

Tests = dict[str, list[str]]
"""File below tests/ -> names of its tests."""

RULES: dict[str, dict[str, Tests]] = {
    "One update": {
        "An update is the mean over valid items, with any accumulation, a short last window, ignored targets.": {
            "unit/loop_tests/test_step.py": [
                "test_partial_window_and_ignored_targets_match_full_batch",
                "test_mean_per_micro_batch_over_constant_k_is_not_the_mean",
            ]
        },
        "Trainings and losses with 1 to 4 workers equal one big batch: float64 to 1e-10, float32 to 1e-6.": {
            "unit/loop_tests/test_oracle.py": [
                "test_training_equals_one_big_batch_in_float64_to_1e_10_and_in_float32_to_1e_6"
            ]
        },
        "Sample weights are part of the mean.": {
            "unit/loop_tests/test_step.py": ["test_sample_weights_are_part_of_the_mean"]
        },
        "Tokens of variable length weigh the same whatever row they are in.": {
            "unit/loop_tests/test_oracle.py": ["test_tokens_of_variable_length_weigh_the_same_whatever_row_they_are_in"]
        },
        "A window without a valid item is no update; each window starts from a cleared gradient.": {
            "unit/loop_tests/test_step.py": [
                "test_a_window_without_a_valid_item_is_no_update",
                "test_each_window_starts_from_a_cleared_gradient",
            ]
        },
        "Workers × micro-batch × accumulation is the global batch, with any number of workers.": {
            "unit/floor_tests/test_batch_plan.py": [
                "test_workers_times_micro_batch_times_accumulation_is_the_global_batch_or_just_above"
            ],
            "unit/launch_tests/test_fit.py": ["test_an_attempt_with_fewer_workers_has_a_plan_of_its_own"],
        },
    },
    "Optimizers, groups and callbacks": {
        "Lion and schedule-free are their papers, Muon is torch's with AdamW for the rest.": {
            "unit/loop_tests/parts/test_optimizers.py": [
                "test_our_own_are_their_papers",
                "test_muon_is_torchs_for_hidden_matrices_and_adamw_for_the_rest",
                "test_torchs_own_are_torchs_own",
            ]
        },
        "A stop in the middle of an epoch changes no byte, with every optimizer, schedule and callback.": {
            "unit/loop_tests/parts/test_optimizers.py": ["test_a_stop_in_the_middle_of_an_epoch_changes_no_byte"]
        },
        "Two workers train as one, with every optimizer, schedule and callback.": {
            "unit/loop_tests/parts/test_optimizers.py": ["test_two_workers_train_as_one"]
        },
        "A parameter that no worker's backward reaches is left out of the step, as torch leaves it out.": {
            "unit/loop_tests/test_unreached.py": [
                "test_weights_are_torchs",
                "test_workers_agree_on_what_one_of_them_has_reached",
            ]
        },
        "Over a resume a callback sees each update once; its error on one worker ends all.": {
            "unit/loop_tests/test_callbacks.py": [
                "test_over_a_resume_each_update_is_counted_once",
                "test_an_error_on_one_worker_ends_all_with_its_words",
            ]
        },
    },
    "Rows and random numbers": {
        "The order is a function of (seed, epoch, position); 1 to 4 workers read the same global batches.": {
            "unit/loop_tests/data/test_sampler.py": ["test_global_batches_do_not_depend_on_the_number_of_workers"]
        },
        "Augmentation is drawn by (seed, epoch, window), not by worker.": {
            "unit/loop_tests/data/test_augment.py": [
                "test_augmentation_changes_from_epoch_to_epoch_and_not_with_the_workers"
            ]
        },
        "MixUp of rows with sample weights is the weighted sum of both losses.": {
            "unit/loop_tests/data/test_augment.py": ["test_mixup_of_weighted_rows_is_the_weighted_sum_of_both_losses"]
        },
        "Workers draw different dropout, and start, stop and end alike.": {
            "unit/loop_tests/parts/test_rng.py": ["test_workers_draw_different_numbers_and_the_same_again"],
            "unit/loop_tests/checkpointing/test_snapshot.py": [
                "test_another_number_of_workers_does_not_draw_the_first_epochs_numbers_again"
            ],
            "unit/loop_tests/test_loop.py": ["test_workers_start_alike_stop_alike_and_end_alike"],
        },
    },
    "Batch norm": {
        "Running statistics move once a global batch; with groups nothing depends on workers or micro-batches.": {
            "unit/loop_tests/parts/test_batch_norm.py": [
                "test_weights_and_statistics_depend_on_neither_workers_nor_micro_batches",
                "test_a_window_moves_the_statistics_by_the_mean_and_variance_of_all_its_rows",
                "test_a_skipped_update_leaves_the_statistics",
                "test_the_resolved_run_says_what_results_depend_on",
            ]
        },
        "Batch norm never sees padding.": {
            "unit/loop_tests/test_oracle.py": ["test_batch_norm_of_a_worker_without_rows_sees_no_padding"]
        },
    },
    "Gradient exchange": {
        "Nothing is sent before the last micro-batch; one all-reduce for each bucket and window.": {
            "unit/loop_tests/test_oracle.py": ["test_nothing_is_sent_before_the_last_micro_batch_and_each_bucket_once"]
        },
        "Shards may be uneven and a worker may have no rows; all ranks end bit-identical.": {
            "unit/loop_tests/test_step.py": ["test_ddp_no_sync_uneven_ranks_match_full_batch"]
        },
        "Workers meet also on hosts whose name resolves to 127.0.0.1.": {
            "integration/train_tests/test_network.py": [
                "test_gloo_meets_over_the_interface_of_the_nodes_address_where_the_host_name_is_127_0_0_1"
            ]
        },
    },
    "Precision, clipping, values that are not finite": {
        "Clipping sees unscaled gradients.": {
            "unit/loop_tests/parts/test_precision.py": ["test_clip_sees_unscaled_gradients"]
        },
        (
            "On an overflow parameters, optimizer, schedule and EMA stay, the scale halves, the cursor moves; "
            "`found_inf` shows it, also with a fused optimizer."
        ): {"unit/loop_tests/parts/test_precision.py": ["test_overflow_skips_params_optimizer_and_schedule"]},
        "fp16 with a fused optimizer and clipping equals fp16 without the fused one.": {
            "unit/loop_tests/parts/test_precision.py": ["test_fp16_fused_with_clipping_equals_fp16_unfused"]
        },
        "bf16 and fp16 autocast run on the CPU.": {
            "unit/loop_tests/parts/test_precision.py": ["test_autocast_runs_on_the_cpu_and_learns"]
        },
        "Without a scaler the trainer guards non-finite gradients itself.": {
            "unit/loop_tests/parts/test_precision.py": [
                "test_bf16_or_fp32_has_no_scaler_so_the_trainer_must_guard_nonfinite"
            ]
        },
        "Gradients that are not finite: skip, then roll back, then stop and name the layer.": {
            "unit/loop_tests/test_failures.py": [
                "test_skip_then_roll_back_then_stop_and_name_the_layer",
                "test_rollback_leaves_the_offending_windows_out",
            ]
        },
        "A rollback leaves out the windows that were not finite, in whichever epoch they are.": {
            "unit/loop_tests/test_failures.py": ["test_rollback_condemns_windows_of_the_epoch_before_too"]
        },
        "The budget counts windows in a row.": {
            "unit/loop_tests/test_loop.py": ["test_the_budget_counts_windows_in_a_row"]
        },
        "An update that is queued past the budget is not made.": {
            "unit/loop_tests/test_step.py": ["test_past_the_budget_an_update_that_is_queued_already_is_not_made"]
        },
        "fp16 that overflows at every scale names the layer.": {
            "unit/loop_tests/test_failures.py": ["test_fp16_that_overflows_at_every_scale_names_the_layer"]
        },
    },
    "Learning rate and growth": {
        "Every schedule starts above 0, peaks after warm-up, and is at its floor at the last update and later.": {
            "unit/loop_tests/parts/test_schedule.py": [
                "test_every_schedule_starts_above_zero_peaks_after_warmup_and_ends_at_the_floor"
            ]
        },
        "The learning rate depends on the update index alone.": {
            "unit/loop_tests/parts/test_schedule.py": [
                "test_lr_is_a_function_of_optimizer_steps_only",
                "test_resume_by_index_equals_uninterrupted_and_sequential_lr_does_not",
            ]
        },
        "The peak follows the global batch by its rule.": {
            "unit/loop_tests/parts/test_schedule.py": ["test_learning_rate_follows_the_global_batch_by_its_rule"]
        },
        "The plateau's factor lowers after its patience and ends at its floor.": {
            "unit/loop_tests/parts/test_schedule.py": ["test_plateau_lowers_after_patience_and_stops_at_its_floor"]
        },
        "The plateau's factor multiplies the schedule.": {
            "unit/loop_tests/test_step.py": ["test_the_plateaus_factor_multiplies_the_schedule"]
        },
        "The batch grows by accumulation; memory stays.": {
            "unit/floor_tests/test_batch_plan.py": ["test_a_batch_grows_linearly_or_by_milestones_and_updates_follow"],
            "unit/loop_tests/parts/test_schedule.py": ["test_a_growing_batch_accumulates_more_and_memory_stays_flat"],
        },
    },
    "Loss, augmentation, averages": {
        (
            "Smoothing, focal, class weights, MixUp, CutMix, shifts, AGC, clipping, EMA, growth, scaling: each "
            "has an effect, none depends on the micro-batch."
        ): {"unit/loop_tests/test_oracle.py": ["test_each_recipe_does_something_and_does_not_see_the_micro_batch"]},
        "Each of these equals its formula.": {
            "unit/loop_tests/parts/test_recipes.py": [
                "test_label_smoothing_is_torchs_and_validation_is_not_smoothed",
                "test_focal_loss_is_its_formula",
                "test_balanced_class_weights_give_each_class_the_same_share",
                "test_mixup_mixes_inputs_and_targets_by_the_same_share_and_keeps_the_weight",
                "test_cutmix_takes_the_box_from_the_partner_and_the_targets_by_area",
                "test_ema_is_the_formula_and_is_what_is_evaluated_and_kept",
            ],
            "unit/loop_tests/parts/test_precision.py": [
                "test_agc_bounds_each_output_unit_by_its_weights",
                "test_clip_by_value_then_norm_returns_the_norm_as_it_came",
            ],
        },
        "Weight decay leaves norms and biases alone.": {
            "unit/loop_tests/parts/test_recipes.py": ["test_weight_decay_leaves_norms_and_biases_alone"]
        },
        "Evaluation uses the EMA, eval mode and the plain loss.": {
            "unit/loop_tests/test_evaluate.py": ["test_what_is_evaluated_is_the_average_in_eval_mode_by_the_plain_loss"]
        },
    },
    "Quantities": {
        "A quantity is learned standardized or bent, by training rows alone; all else is in its own unit.": {
            "unit/data_tests/test_target.py": [
                "test_training_targets_become_standard_and_come_back_in_float32",
                "test_only_training_rows_are_seen",
                "test_past_memory_and_in_memory_have_one_transform",
            ],
            "unit/loop_tests/test_quantities.py": [
                "test_the_default_run_reaches_boosted_trees",
                "test_low_precision_leaves_the_way_back_into_the_unit_in_float",
                "test_a_student_learns_the_teachers_learned_values_and_answers_in_the_unit",
            ],
        },
    },
    "Epochs: best, stopping, metrics": {
        "Early stopping has patience and `min_delta`, in both directions, and restores the best epoch.": {
            "unit/loop_tests/parts/test_recipes.py": [
                "test_early_stopping_counts_epochs_without_min_delta_in_either_direction",
                "test_early_stopping_ends_after_patience_and_the_best_epoch_is_kept",
            ]
        },
        "`keep: last` keeps the last epoch, whatever its metric.": {
            "unit/loop_tests/test_loop.py": ["test_keep_last_keeps_the_last_epoch_whatever_its_metric"]
        },
        "The best, the last and the top-k checkpoints are kept.": {
            "unit/loop_tests/checkpointing/test_folder.py": [
                "test_last_and_best_are_kept_and_the_rest_is_removed",
                "test_top_k_follows_the_mode",
            ]
        },
        "Metrics are sums over counts, not means of means.": {
            "unit/loop_tests/data/test_sampler.py": [
                "test_mean_of_rank_means_is_not_the_mean",
                "test_eval_over_padded_sampler_biases_the_metric",
            ],
            "unit/loop_tests/test_evaluate.py": ["test_uneven_shards_give_the_metrics_of_all_rows_not_a_mean_of_means"],
        },
        "Samples a second are rows that were read, by the time of this part of the run.": {
            "unit/loop_tests/test_loop.py": ["test_samples_a_second_are_rows_that_were_read"]
        },
        "`--profile` records a window of updates.": {
            "unit/loop_tests/test_loop_command.py": [
                "test_a_prepared_run_trains_without_ray",
                "test_profile_of_manta_train_is_a_value_of_the_spec",
            ]
        },
    },
    "Checkpoints and resume": {
        "Resume is bit-exact; each of the eight parts of a checkpoint is needed.": {
            "unit/loop_tests/checkpointing/test_resume.py": [
                "test_resume_is_bit_exact",
                "test_every_part_of_the_checkpoint_is_needed",
            ]
        },
        "Counters, budgets, plateau and best epoch are in the checkpoint too.": {
            "unit/loop_tests/checkpointing/test_snapshot.py": ["test_every_fact_of_the_state_survives_a_checkpoint"]
        },
        "kill -9 at random moments, also while a checkpoint is written, changes no byte.": {
            "unit/loop_tests/checkpointing/test_kill.py": [
                "test_kill_9_at_random_moments_also_while_a_checkpoint_is_written_changes_no_byte"
            ]
        },
        "kill -9 of a worker, Ray's controller or the driver inside a window changes no byte and no order of rows.": {
            "integration/train_tests/test_kill.py": [
                "test_kill_9_of_a_worker_or_the_controller_inside_a_window_changes_no_byte",
                "test_kill_9_of_the_driver_inside_a_window_changes_no_byte",
            ]
        },
        "Torn, truncated or flipped checkpoints are left out and reported.": {
            "unit/loop_tests/checkpointing/test_folder.py": [
                "test_damaged_checkpoint_is_left_out_reported_and_the_one_before_wins"
            ]
        },
        "An attempt that was replaced can no longer write.": {
            "unit/loop_tests/checkpointing/test_folder.py": [
                "test_attempt_replaced_in_the_middle_of_a_write_neither_ends_it_nor_harms_the_new_one",
                "test_replaced_attempt_of_a_fit_ends_at_its_next_checkpoint",
            ]
        },
        "`channels_last` resumes with the same bytes: moments come back in the order of the weights.": {
            "unit/loop_tests/checkpointing/test_resume.py": ["test_resume_of_channels_last_weights_is_bit_exact"]
        },
    },
    "A changed spec": {
        "A change that cannot alter the result, or extends or moves the training, goes on; any other starts anew.": {
            "unit/floor_tests/test_resume_rules.py": [
                "test_every_key_of_the_table_is_a_key_of_train",
                "test_what_is_the_same_is_in_no_digest",
                "test_only_what_starts_anew_makes_another_training",
            ],
            "unit/launch_tests/test_earlier.py": [
                "test_more_epochs_go_on_and_another_rate_starts_anew",
                "test_fewer_epochs_than_are_trained_are_another_training",
            ],
            "integration/train_tests/test_changed_spec.py": ["test_a_changed_spec_goes_on_or_starts_anew_and_says_so"],
        },
        "The state of an earlier training stays until the new one has an epoch.": {
            "unit/launch_tests/test_earlier.py": ["test_the_earlier_state_stays_until_the_new_one_has_an_epoch"]
        },
        "A micro-batch and an early stopping that were changed hold for the training that goes on.": {
            "unit/loop_tests/checkpointing/test_resume.py": ["test_a_resume_follows_the_spec_of_now"]
        },
    },
    "More and fewer workers, notices to stop": {
        "With 4 workers, then 2, then 4, rows, batches and schedule are exact.": {
            "unit/loop_tests/checkpointing/test_resume.py": [
                "test_four_workers_then_two_then_four_keep_rows_batches_and_schedule"
            ]
        },
        "A preempted, a new and a killed node of a real cluster: the training equals one big batch.": {
            "integration/train_tests/test_elastic.py": [
                "test_notice_new_node_and_killed_node_change_workers_but_nothing_of_the_training"
            ]
        },
        "Ctrl-C writes a checkpoint at once.": {
            "unit/launch_tests/test_fit.py": ["test_ctrl_c_waits_for_the_last_checkpoint"],
            "integration/train_tests/test_elastic.py": [
                "test_ctrl_c_writes_a_checkpoint_at_once_and_the_same_call_goes_on"
            ],
            "unit/loop_tests/checkpointing/test_resume.py": [
                "test_notice_to_stop_writes_a_checkpoint_and_the_same_command_goes_on"
            ],
        },
        "Lost workers and notices have a budget each.": {
            "unit/launch_tests/test_failures.py": [
                "test_lost_workers_and_notices_have_a_budget_each_and_growing_has_none"
            ]
        },
    },
    "Failures": {
        "A user's bug is never retried; its traceback is shown.": {
            "integration/train_tests/test_launch.py": ["test_a_users_bug_is_not_retried_and_its_traceback_is_shown"]
        },
        "One rank's failure is raised on all: in forward, in backward (with buckets already sent), in validation.": {
            "unit/loop_tests/test_failures.py": [
                "test_one_rank_failing_is_agreed_on_by_all",
                "test_one_rank_failing_in_validation_is_agreed_on_by_all",
            ]
        },
        "After out of memory gradient, random states and buffers are as if it had not happened, agreed by all.": {
            "unit/loop_tests/test_failures.py": [
                "test_oom_retry_keeps_gradient_rng_and_buffers",
                "test_memory_short_on_one_rank_makes_the_micro_batch_smaller_on_all",
            ]
        },
        "A retry does not share memory with the attempt that failed; it ends at the largest micro-batch that fits.": {
            "unit/loop_tests/test_memory_short.py": ["test_recovery_ends_at_the_largest_micro_batch_that_fits"]
        },
        "Memory that is short in the optimizer ends all workers with its cause; in the exchange it is tried again.": {
            "unit/loop_tests/test_memory_short.py": [
                "test_an_optimizer_without_memory_ends_all_workers_with_its_cause",
                "test_an_exchange_or_an_inspection_without_memory_ends_no_run",
            ]
        },
        "A NaN or an infinity in the rows is said before the first update, or by the windows that it makes.": {
            "unit/loop_tests/data/test_not_finite.py": [
                "test_a_split_in_memory_is_refused_with_its_rows",
                "test_a_larger_split_names_its_rows_when_their_window_is_skipped",
                "test_a_validation_that_is_not_finite_is_said_in_its_epoch",
            ],
            "unit/diagnose_tests/test_diagnose.py": ["test_skipped_updates_are_a_finding_with_their_rows"],
        },
        "A module that cannot be trained is one sentence; buffers on which workers agree keep their bytes.": {
            "unit/loop_tests/test_own_modules.py": [
                "test_what_cannot_be_trained_is_one_sentence",
                "test_buffers_of_any_kind_on_which_workers_agree_keep_their_bytes",
                "test_parameters_without_a_gradient_are_said_once",
            ]
        },
        "Memory may be short in validation only.": {
            "unit/loop_tests/test_failures.py": ["test_evaluation_that_does_not_fit_is_tried_with_fewer_rows"],
            "unit/loop_tests/test_memory_short.py": ["test_validation_ends_at_rows_that_fit_and_remembers_them"],
        },
        "A hang names the missing rank and shows all stacks.": {
            "unit/loop_tests/test_failures.py": ["test_watchdog_names_the_missing_rank_and_shows_all_stacks"]
        },
        "A disk that is really full ends the run with an error on all ranks; the last checkpoint resumes exactly.": {
            "integration/train_tests/test_disk.py": [
                "test_full_disk_stops_with_a_clear_error_and_the_last_checkpoint_goes_on_exactly",
                "test_full_disk_of_rank_0_stops_all_ranks_together",
            ]
        },
    },
    "Micro-batch and learning rate by trial": {
        (
            "`batch_size_per_worker: auto` doubles, bisects to 3 % and takes the knee; the smallest rank "
            "decides; head-room and a stated budget hold."
        ): {
            "unit/loop_tests/tuner/test_batch_size_finder.py": [
                "test_probe_doubles_then_bisects_to_within_five_percent",
                "test_probe_takes_the_knee_not_the_largest",
                "test_auto_on_two_workers_is_what_the_smaller_one_holds",
                "test_probe_on_a_cpu_keeps_to_the_stated_budget",
            ]
        },
        "The probe leaves nothing behind, is remembered, and a run that goes on does not probe again.": {
            "unit/loop_tests/tuner/test_batch_size_finder.py": [
                "test_probe_finds_the_out_of_memory_limit_and_leaves_the_model_as_it_was",
                "test_what_was_found_is_remembered_for_the_same_configuration_only",
                "test_auto_is_probed_when_a_run_starts_and_kept_when_it_goes_on",
            ]
        },
        "`manta explain` shows the size with its reason.": {
            "unit/loop_tests/test_explain.py": ["test_explain_shows_the_micro_batch_that_fits_the_stated_memory"]
        },
        "The range test suggests a rate that trains, and leaves the model as it was.": {
            "unit/loop_tests/tuner/test_learning_rate_finder.py": [
                "test_range_test_suggests_a_rate_that_trains_and_leaves_the_model_as_it_was"
            ]
        },
        "The memory estimate follows autocast, and a GPU's kernels.": {
            "unit/loop_tests/tuner/test_memory_estimate.py": [
                "test_autocast_saves_what_it_has_cast",
                "test_a_gpus_forward_is_counted_without_a_gpu",
            ]
        },
    },
    "Speed and determinism": {
        "A steady update reads nothing from the device; reading one update late changes no byte.": {
            "unit/loop_tests/test_steady_updates.py": [
                "test_fifty_steady_updates_read_nothing_from_the_device",
                "test_reading_one_update_late_ends_with_the_same_bytes",
            ]
        },
        "The optimizer's kernel called directly is the optimizer's step.": {
            "unit/loop_tests/test_steady_updates.py": ["test_quick_step_is_the_optimizers_own_step"]
        },
        "`compile`, `channels_last`, `bucket_mib` and `wire: bf16` take the path they name.": {
            "unit/loop_tests/test_spec_paths.py": [
                "test_compile_sends_every_training_forward_through_the_compiled_graph",
                "test_compile_keeps_one_exchange_a_window_and_the_same_gradients",
                "test_channels_last_gives_convolutions_such_inputs",
                "test_bucket_mib_cuts_the_gradient_into_pieces_of_that_size",
                "test_wire_bf16_sends_half_the_bytes_and_the_loss_in_full",
            ]
        },
        "Updates run no garbage collector and make no new gradients.": {
            "unit/loop_tests/test_spec_paths.py": [
                "test_no_garbage_is_collected_in_updates_and_gradients_stay_where_they_are"
            ]
        },
        (
            "`deterministic` holds in training and no longer, changes no byte on a CPU, is set before CUDA "
            "starts, and names what has no such form."
        ): {
            "unit/loop_tests/parts/test_deterministic.py": [
                "test_the_settings_hold_in_training_and_no_longer",
                "test_the_weights_on_a_cpu_are_those_of_a_run_without_it",
                "test_cublas_is_told_before_cuda_starts",
                "test_an_operation_without_a_deterministic_form_is_named",
            ]
        },
        "`make gpu-evidence` ends a step that hangs, keeps what each step found, and reports its outcome.": {
            "unit/benchmark_tests/test_gpu_script.py": ["test_steps_are_ended_kept_and_told_apart"]
        },
        "A dry run of `make gpu-evidence` never replaces a GPU's result.": {
            "unit/benchmark_tests/test_gpu_script.py": ["test_a_dry_run_never_takes_the_place_of_a_gpus_result"]
        },
    },
}
"""Topic -> rule -> tests."""
