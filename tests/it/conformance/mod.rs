//! One suite for two servers: the sandbox must behave as Google's emulator does.
//!
//! Every check is a function of a server. Where the two differ and Firestore is not known to side with the sandbox, the
//! emulator is right.

pub(crate) mod client;
mod lists;
mod names;
mod queries;
mod values;
mod writes;

use client::Server;

use crate::support;

/// Runs checks against the sandbox and, where it is installed, against the emulator.
macro_rules! conformance {
    ($($module:ident :: { $($check:ident),* $(,)? })*) => {
        mod sandbox {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let sandbox = crate::support::sandbox().await;
                    let server = super::Server::connect(&sandbox.address().to_string(), stringify!($check)).await;
                    super::$module::$check(&server).await;
                }
            )*)*
        }
        mod emulator {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let Some(address) = super::support::emulator() else { return };
                    let server = super::Server::connect(address, stringify!($check)).await;
                    super::$module::$check(&server).await;
                }
            )*)*
        }
    };
}

conformance! {
    names::{
        kindless_query_follows_name_order,
        cursors_cut_at_every_name,
        pages_by_cursor_repeat_and_skip_nothing,
        smallest_ids_bound_a_root_collection,
        names_are_checked,
        databases_keep_apart,
    }
    queries::{
        selectors_choose_collections,
        limits_and_offsets_count_documents,
        answers_say_their_time_and_the_end,
        projections_keep_names_and_times,
        cursors_are_checked,
        descending_names_are_refused,
        reads_see_the_past,
        filters_select_by_value,
        changes_are_asked_by_field_and_name,
        orders_follow_the_order_of_values,
    }
    values::{
        values_come_back_bit_for_bit,
        timestamps_are_cut_to_microseconds,
        bad_values_fail_the_request,
        large_documents_fail_alone,
    }
    writes::{
        preconditions_fail_alone_in_a_batch,
        batches_refuse_as_a_whole,
        times_are_the_servers,
        commits_apply_in_order,
        masks_change_what_they_name,
        transforms_compute_from_what_is_there,
        single_documents_are_created_updated_deleted,
        transactions_begin_commit_and_end,
        contending_transactions_are_not_both_done,
        transactions_begin_with_a_read,
    }
    lists::{
        collection_ids_come_in_pages,
        documents_are_listed_with_missing_ones,
        documents_are_got_by_name,
        counts_follow_the_query,
    }
}
