//! One suite for two servers: the sandbox must behave as Google's emulator does.
//!
//! Every check is a function of a server. Where the two differ and Firestore is not known to side with the sandbox, the
//! emulator is right.

mod client;
mod names;
mod probe;

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
                    let server = super::Server::connect(&sandbox.address().to_string(), stringify!($check), false).await;
                    super::$module::$check(&server).await;
                }
            )*)*
        }
        mod emulator {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let Some(address) = super::support::emulator() else { return };
                    let server = super::Server::connect(address, stringify!($check), true).await;
                    super::$module::$check(&server).await;
                }
            )*)*
        }
    };
}

conformance! {
    probe::{ probe, probe2 }
    names::{
        kindless_query_follows_name_order,
    }
}
