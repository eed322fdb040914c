//! The cases on the stand-in: they show that the level is right, and nothing of a GPU.

use std::path::Path;

use tpad_gpu::stage::{MIB, Machine, Stage};
use tpad_gpu::suite::CASES;

/// As often as takes no more than some seconds.
const KILLS: u32 = 12;

fn run(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).expect("a case of this name");
    // Memory, so that nothing is written to a disk.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::tempdir_in(parent).expect("a directory");
    let directory_path = directory.path().to_owned();
    let machine = Machine::StandIn { directory: directory_path, devices: 2, bytes: 128 * MIB };
    let driver = machine.driver().expect("the stand-in is always there");
    let program = env!("CARGO_BIN_EXE_tpad-gpu").into();
    let streams = tpad_hbm::HbmConfig::STREAMS;
    let stage = Stage { driver, machine, program, kills: KILLS, streams };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.expect("a runtime").block_on(case.run(stage));
    assert_eq!(outcome.err().map(|problem| format!("{problem:#}")), None);
}

macro_rules! on_the_stand_in {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn no_case_is_left_out() {
            let here = [$(stringify!($name)),*];
            assert_eq!(CASES.iter().map(|case| case.name).collect::<Vec<_>>(), here);
        }
    };
}

on_the_stand_in! {
    a_block_of_any_size_arrives_whole_and_is_read_where_it_lies
    whoever_asks_at_once_gets_one_copy
    callers_that_hang_up_leave_the_copy_to_the_level
    what_is_held_outlasts_its_eviction
    host_memory_is_registered_as_long_as_it_is_mapped
    blocks_live_on_several_devices
    a_fill_that_nobody_waits_for_does_not_wait_for_room
    who_joins_what_is_given_up_waits_all_the_same
    closing_ends_the_waits_for_room
    no_schedule_takes_more_than_the_capacity_or_mixes_blocks
    a_cold_class_does_not_push_out_a_hot_one
    a_prefetch_does_not_push_out_what_is_used_more_often
    what_nobody_holds_goes_first
    a_demand_waits_for_a_slot_until_its_deadline_and_a_prefetch_does_not
    more_demands_at_once_than_there_is_room_for_all_arrive
    another_slot_size_gets_the_room_of_what_nobody_holds
    what_is_used_most_stays_when_layers_ask_in_turn
    a_batch_finds_what_it_had_brought_just_now
    a_batch_keeps_what_it_found_until_the_rest_is_there
    whoever_joins_a_fill_is_counted_and_awaited_too
    what_was_used_before_its_model_ended_gives_way_to_a_prefetch
    what_is_expected_takes_the_place_of_what_is_used_least
    a_guess_is_whole_whoever_comes_for_it_and_whenever
    a_guess_that_is_given_up_leaves_no_byte
    a_sticky_error_turns_the_level_off_and_blocks_stay_harmless
    a_device_without_memory_is_asked_again_and_the_level_grows
    host_memory_that_is_not_registered_is_copied_all_the_same
    another_process_reads_what_lies_there_and_cannot_write
    a_slab_that_a_worker_has_mapped_is_wanted_and_not_given_back
    killed_workers_leave_no_byte
    a_daemon_that_is_killed_leaves_right_bytes
    a_daemon_starts_under_a_worker_that_holds_most_of_the_memory
    work_that_was_submitted_reads_what_it_was_to_read
    without_waiting_it_would_read_something_else
    leases_go_in_order_and_all_of_them
}
