//! Trouble on demand: what a server under load, a bad network or a restricted project does to a client.
//!
//! A plan can be replaced while the server runs. What happens by chance follows from the plan's seed and from how many
//! calls a fault has seen, so a test that makes its calls one after the other sees the same trouble every time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::{Code, Status};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::connections::Connections;

/// The methods that the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    missing_docs,
    reason = "they are google.firestore.v1's and its administration's, by their names there"
)]
pub enum Rpc {
    RunQuery,
    RunAggregationQuery,
    PartitionQuery,
    ListCollectionIds,
    ListDocuments,
    GetDocument,
    CreateDocument,
    UpdateDocument,
    DeleteDocument,
    BatchGetDocuments,
    BatchWrite,
    Commit,
    BeginTransaction,
    Rollback,
    GetDatabase,
    ListFields,
}

impl Rpc {
    /// Every method, in the order of their declaration.
    pub const ALL: [Self; 16] = [
        Self::RunQuery,
        Self::RunAggregationQuery,
        Self::PartitionQuery,
        Self::ListCollectionIds,
        Self::ListDocuments,
        Self::GetDocument,
        Self::CreateDocument,
        Self::UpdateDocument,
        Self::DeleteDocument,
        Self::BatchGetDocuments,
        Self::BatchWrite,
        Self::Commit,
        Self::BeginTransaction,
        Self::Rollback,
        Self::GetDatabase,
        Self::ListFields,
    ];
}

/// Which of the calls, or writes, that a fault could meet it does meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// Every one.
    Always,
    /// Each with this probability, between 0 and 1.
    Probability(f64),
    /// The nth, the 2nth and so on, counted from 1.
    EveryNth(u64),
    /// The first so many.
    First(u64),
    /// All but the first so many.
    After(u64),
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// It is answered with this status and does nothing.
    Status(Code, String),
    /// It is answered later by this much.
    Delay(Duration),
    /// It is answered once the plan is another one.
    Hold,
    /// Its stream ends with this status after so many documents.
    CutAfter {
        /// Documents that are still sent.
        documents: u64,
        /// The status that follows.
        code: Code,
    },
    /// Its connection is closed after so many documents, and whatever else runs on it with it.
    ResetAfter {
        /// Documents that are still sent.
        documents: u64,
    },
    /// Its stream ends after so many documents as if there were no more, with OK.
    EndAfter {
        /// Documents that are still sent.
        documents: u64,
    },
    /// The same, and it says with its last message that there are no more.
    CompleteAfter {
        /// Documents that are still sent.
        documents: u64,
    },
    /// A write of a BatchWrite gets this status and is not done. `When` counts writes, not calls.
    WriteStatus {
        /// The status of the write.
        code: Code,
        /// Only writes to documents whose name contains this; empty for all.
        name_contains: String,
    },
    /// The same, but the write is done: its status does not say what became of it. One that cannot be done gets its own status.
    DoneWriteStatus {
        /// The status of the write.
        code: Code,
        /// Only writes to documents whose name contains this; empty for all.
        name_contains: String,
    },
}

impl Effect {
    /// Whether it is for single writes and not for calls.
    fn is_of_writes(&self) -> bool {
        matches!(self, Self::WriteStatus { .. } | Self::DoneWriteStatus { .. })
    }
}

/// Trouble for some calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The methods it is for; empty for all.
    pub methods: Vec<Rpc>,
    /// Which of their calls it meets.
    pub when: When,
    /// What it does to them.
    pub effect: Effect,
}

impl Fault {
    /// Trouble for the calls of one method.
    pub fn new(method: Rpc, when: When, effect: Effect) -> Self {
        Self {
            methods: vec![method],
            when,
            effect,
        }
    }

    /// Trouble for writes of BatchWrite whose document's name contains `name_contains`.
    pub fn write(code: Code, name_contains: impl Into<String>, when: When) -> Self {
        let effect = Effect::WriteStatus {
            code,
            name_contains: name_contains.into(),
        };
        Self::new(Rpc::BatchWrite, when, effect)
    }

    /// The same for writes that are done all the same.
    pub fn done_write(code: Code, name_contains: impl Into<String>, when: When) -> Self {
        let effect = Effect::DoneWriteStatus {
            code,
            name_contains: name_contains.into(),
        };
        Self::new(Rpc::BatchWrite, when, effect)
    }
}

/// Everything that is to go wrong. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    /// Decides what happens by chance.
    pub seed: u64,
    /// Tried in order; the first status, cut or end that meets a call counts, delays add up.
    pub faults: Vec<Fault>,
    /// How long a stream lives before it ends with UNAVAILABLE. Firestore's live for about 60 s.
    pub stream_lifetime: Option<Duration>,
    /// How many bytes of streamed documents all connections together get in a second.
    pub bytes_per_second: Option<u64>,
    /// How many streamed documents all connections together get until the plan is another one. A stream may send what it has at
    /// hand beyond that.
    pub hold_after: Option<u64>,
    /// Writes above which a BatchWrite or Commit is "too big".
    pub max_request_writes: Option<usize>,
    /// Bytes above which a BatchWrite or Commit is "too big".
    pub max_request_bytes: Option<usize>,
    /// Refuse queries over all collections with INVALID_ARGUMENT.
    pub refuse_kindless: bool,
    /// Answer PartitionQuery with UNIMPLEMENTED, as Google's emulator does.
    pub refuse_partition_query: bool,
    /// How long the past can be read, in place of the configuration's.
    pub history: Option<Duration>,
}

/// What a stream has to suffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamFate {
    pub(crate) end: Option<(u64, StreamEnd)>,
    pub(crate) deadline: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(crate) enum StreamEnd {
    Short,
    Complete,
    Status(Code),
    Reset,
}

/// What a write of a BatchWrite has to suffer.
#[derive(Clone, Debug)]
pub(crate) enum WriteFate {
    /// Nothing.
    Usual,
    /// It is not done, and gets this status.
    NotDone(Status),
    /// It is done if it can be, and gets this status.
    Done(Status),
}

#[derive(Debug)]
struct Active {
    plan: FaultPlan,
    /// Calls or writes that each fault has seen.
    seen: Vec<AtomicU64>,
    /// Documents that streams were let send.
    sent: AtomicU64,
}

impl Active {
    fn new(plan: FaultPlan) -> Self {
        Self {
            seen: plan.faults.iter().map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
            plan,
        }
    }

    /// Counts a call for the fault and says whether it meets it.
    fn meets(&self, index: usize) -> bool {
        let nth = self.seen[index].fetch_add(1, Ordering::Relaxed) + 1;
        match self.plan.faults[index].when {
            When::Always => true,
            When::Probability(probability) => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&nth.to_le_bytes());
                bytes[8..].copy_from_slice(&(index as u64).to_le_bytes());
                (xxh3_64_with_seed(&bytes, self.plan.seed) as f64) < probability * u64::MAX as f64
            }
            When::EveryNth(n) => nth.is_multiple_of(n.max(1)),
            When::First(n) => nth <= n,
            When::After(n) => nth > n,
        }
    }
}

/// The handle by which a running server's faults are changed. Clones are the same handle.
#[derive(Clone, Debug)]
pub struct Faults {
    active: watch::Sender<Arc<Active>>,
    /// When the streams' bytes that were given out so far are paid for.
    paid_until: Arc<Mutex<Instant>>,
    connections: Connections,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan, connections: Connections) -> Self {
        Self {
            active: watch::Sender::new(Arc::new(Active::new(plan))),
            paid_until: Arc::new(Mutex::new(Instant::now())),
            connections,
        }
    }

    fn active(&self) -> Arc<Active> {
        self.active.borrow().clone()
    }

    /// Replaces the plan; every fault begins to count anew. Streams that are open keep the fate they have.
    pub fn set(&self, plan: FaultPlan) {
        self.active.send_replace(Arc::new(Active::new(plan)));
    }

    /// Adds a fault to the plan; every fault begins to count anew.
    pub fn add(&self, fault: Fault) {
        let mut plan = self.plan();
        plan.faults.push(fault);
        self.set(plan);
    }

    /// Ends all trouble.
    pub fn clear(&self) {
        self.set(FaultPlan::default());
    }

    /// The plan in force.
    pub fn plan(&self) -> FaultPlan {
        self.active().plan.clone()
    }

    /// Closes every connection that is open now.
    pub fn kill_connections(&self) {
        self.connections.close_all();
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// How far back reads may go, in microseconds.
    pub(crate) fn history(&self, configured: Duration) -> i64 {
        self.active()
            .plan
            .history
            .unwrap_or(configured)
            .as_micros()
            .try_into()
            .unwrap_or(i64::MAX)
    }

    /// Lets a call suffer its delays, and says how its stream ends or that it fails at once.
    pub(crate) async fn admit(&self, rpc: Rpc) -> Result<StreamFate, Status> {
        let mut plans = self.active.subscribe();
        let active = plans.borrow_and_update().clone();
        let mut fate = StreamFate {
            end: None,
            deadline: active
                .plan
                .stream_lifetime
                .map(|lifetime| Instant::now() + lifetime),
        };
        let mut status = None;
        for (index, fault) in active.plan.faults.iter().enumerate() {
            let meant = fault.methods.is_empty() || fault.methods.contains(&rpc);
            if !meant || fault.effect.is_of_writes() || !active.meets(index) {
                continue;
            }
            match &fault.effect {
                Effect::Delay(delay) => tokio::time::sleep(*delay).await,
                // The sender is this handle's own, so it is there.
                Effect::Hold => drop(plans.changed().await),
                Effect::Status(code, message) => {
                    status.get_or_insert_with(|| Status::new(*code, message.clone()));
                }
                Effect::CutAfter { documents, code } => {
                    fate.end.get_or_insert((*documents, StreamEnd::Status(*code)));
                }
                Effect::ResetAfter { documents } => {
                    fate.end.get_or_insert((*documents, StreamEnd::Reset));
                }
                Effect::EndAfter { documents } => {
                    fate.end.get_or_insert((*documents, StreamEnd::Short));
                }
                Effect::CompleteAfter { documents } => {
                    fate.end.get_or_insert((*documents, StreamEnd::Complete));
                }
                Effect::WriteStatus { .. } | Effect::DoneWriteStatus { .. } => {}
            }
        }
        if rpc == Rpc::PartitionQuery && active.plan.refuse_partition_query {
            status.get_or_insert_with(|| Status::unimplemented("PartitionQuery is not implemented."));
        }
        status.map_or(Ok(fate), Err)
    }

    /// Refuses a request that is larger than the plan lets it be.
    pub(crate) fn check_size(&self, writes: usize, bytes: usize) -> Result<(), Status> {
        let active = self.active();
        let above = |limit: Option<usize>, count: usize| limit.is_some_and(|limit| count > limit);
        if above(active.plan.max_request_writes, writes) || above(active.plan.max_request_bytes, bytes) {
            return Err(Status::invalid_argument(
                "Transaction too big. Decrease transaction size.",
            ));
        }
        Ok(())
    }

    pub(crate) fn refuses_kindless(&self) -> bool {
        self.active().plan.refuse_kindless
    }

    /// What a write of a BatchWrite has to suffer.
    pub(crate) fn write_fate(&self, name: &str) -> WriteFate {
        let active = self.active();
        let told = |code| {
            Status::new(
                code,
                format!("The sandbox was told to answer this write with {code:?}."),
            )
        };
        for (index, fault) in active.plan.faults.iter().enumerate() {
            match &fault.effect {
                Effect::WriteStatus { code, name_contains }
                    if name.contains(name_contains) && active.meets(index) =>
                {
                    return WriteFate::NotDone(told(*code));
                }
                Effect::DoneWriteStatus { code, name_contains }
                    if name.contains(name_contains) && active.meets(index) =>
                {
                    return WriteFate::Done(told(*code));
                }
                _ => {}
            }
        }
        WriteFate::Usual
    }

    /// Waits until so much more may be sent.
    pub(crate) async fn throttle(&self, documents: u64, bytes: usize) {
        let mut plans = self.active.subscribe();
        let active = plans.borrow_and_update().clone();
        let sent = active.sent.fetch_add(documents, Ordering::Relaxed);
        if active.plan.hold_after.is_some_and(|limit| sent >= limit) {
            drop(plans.changed().await);
        }
        let Some(rate) = self.active().plan.bytes_per_second else {
            return;
        };
        let wait_until = {
            let mut paid_until = self
                .paid_until
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let start = (*paid_until).max(Instant::now());
            *paid_until = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            start
        };
        tokio::time::sleep_until(wait_until.into()).await;
    }
}
