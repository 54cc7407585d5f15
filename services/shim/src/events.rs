//! Events on their way to whoever listens at `TTRPC_ADDRESS`: in order, at least once, never in the
//! way of a call.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task as event;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::Notify;
use ttrpc::context;

use crate::children::Exit;

/// How many wait while nobody listens; then the oldest go.
const QUEUE_MAX: usize = 4096;

const ANSWER: Duration = Duration::from_secs(5);

/// The queue; clones share it.
#[derive(Clone)]
pub(crate) struct Publisher(Arc<Inner>);

struct Inner {
    namespace: String,
    /// Empty: nobody ever listens.
    address: String,
    queue: Mutex<VecDeque<Envelope>>,
    changed: Notify,
}

impl Publisher {
    /// Sends to `address`, a socket path with or without `unix://`; none: drops everything.
    pub(crate) fn new(namespace: &str, address: Option<&str>) -> Self {
        let path = address.map_or("", |address| {
            address.strip_prefix("unix://").unwrap_or(address)
        });
        let address = if path.is_empty() {
            String::new()
        } else {
            format!("unix://{path}")
        };
        Self(Arc::new(Inner {
            namespace: namespace.to_owned(),
            address,
            queue: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn create(&self, id: &str, bundle: &Path, request: CreateTaskRequest, pid: i32) {
        let io = event::TaskIO {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            ..event::TaskIO::default()
        };
        let message = event::TaskCreate {
            container_id: id.to_owned(),
            bundle: bundle.display().to_string(),
            rootfs: request.rootfs.iter().map(again).collect(),
            io: Some(io).into(),
            pid: pid.unsigned_abs(),
            ..event::TaskCreate::default()
        };
        self.publish(topics::TASK_CREATE_EVENT_TOPIC, "TaskCreate", &message);
    }

    pub(crate) fn start(&self, id: &str, exec_id: &str, pid: i32) {
        let (container_id, pid) = (id.to_owned(), pid.unsigned_abs());
        if exec_id.is_empty() {
            let message = event::TaskStart {
                container_id,
                pid,
                ..Default::default()
            };
            self.publish(topics::TASK_START_EVENT_TOPIC, "TaskStart", &message);
        } else {
            let exec_id = exec_id.to_owned();
            let message = event::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            };
            self.publish(
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                "TaskExecStarted",
                &message,
            );
        }
    }

    pub(crate) fn exec_added(&self, id: &str, exec_id: &str) {
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let message = event::TaskExecAdded {
            container_id,
            exec_id,
            ..Default::default()
        };
        self.publish(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            "TaskExecAdded",
            &message,
        );
    }

    /// `process` is the container's id for init, the exec's otherwise.
    pub(crate) fn exit(&self, id: &str, process: &str, pid: i32, exit: Exit) {
        let message = event::TaskExit {
            container_id: id.to_owned(),
            id: process.to_owned(),
            pid: pid.unsigned_abs(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", &message);
    }

    pub(crate) fn delete(&self, id: &str, pid: i32, exit: Exit) {
        let message = event::TaskDelete {
            container_id: id.to_owned(),
            pid: pid.unsigned_abs(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_DELETE_EVENT_TOPIC, "TaskDelete", &message);
    }

    pub(crate) fn paused(&self, id: &str, paused: bool) {
        let container_id = id.to_owned();
        if paused {
            let message = event::TaskPaused {
                container_id,
                ..Default::default()
            };
            self.publish(topics::TASK_PAUSED_EVENT_TOPIC, "TaskPaused", &message);
        } else {
            let message = event::TaskResumed {
                container_id,
                ..Default::default()
            };
            self.publish(topics::TASK_RESUMED_EVENT_TOPIC, "TaskResumed", &message);
        }
    }

    pub(crate) fn oom(&self, id: &str) {
        let message = event::TaskOOM {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.publish(topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", &message);
    }

    fn publish(&self, topic: &str, name: &str, message: &dyn protobuf::MessageDyn) {
        if self.0.address.is_empty() {
            return;
        }
        let event = Any {
            type_url: format!("containerd.events.{name}"),
            value: message.write_to_bytes_dyn().unwrap_or_default(),
            ..Any::default()
        };
        let mut queue = self.queue();
        if queue.len() == QUEUE_MAX {
            queue.pop_front();
        }
        queue.push_back(Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.0.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event).into(),
            ..Envelope::default()
        });
        self.0.changed.notify_waiters();
        self.0.changed.notify_one();
    }

    /// Sends for ever; reconnects when the listener comes back.
    pub(crate) async fn deliver(self) {
        let mut client = None;
        let mut pause = Duration::from_millis(50);
        loop {
            let Some(next) = self.first() else {
                self.0.changed.notified().await;
                continue;
            };
            if self.send(&mut client, next).await {
                self.queue().pop_front();
                self.0.changed.notify_waiters();
                pause = Duration::from_millis(50);
            } else {
                client = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }

    /// Waits until nothing waits any more, at most `bound`.
    pub(crate) async fn flush(&self, bound: Duration) {
        let empty = async {
            loop {
                let changed = self.0.changed.notified();
                if self.queue().is_empty() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(bound, empty).await;
    }

    async fn send(&self, client: &mut Option<EventsClient>, envelope: Envelope) -> bool {
        if client.is_none() {
            *client = Client::connect(&self.0.address)
                .await
                .map(EventsClient::new)
                .ok();
        }
        let Some(client) = client else { return false };
        let mut context = context::with_duration(ANSWER);
        context.add(
            "containerd-namespace-ttrpc".into(),
            self.0.namespace.clone(),
        );
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..ForwardRequest::default()
        };
        match client.forward(context, &request).await {
            Ok(_) => true,
            // The listener is there and does not want it: it will not want it later either.
            Err(ttrpc::Error::RpcStatus(status)) => {
                status.code() != ttrpc::Code::UNAVAILABLE
                    && status.code() != ttrpc::Code::DEADLINE_EXCEEDED
            }
            Err(_) => false,
        }
    }

    fn first(&self) -> Option<Envelope> {
        self.queue().front().cloned()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A point in time as protobuf writes it.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos() as i32,
        ..Timestamp::default()
    }
}

/// The generated code has one `Mount` per module.
fn again(
    mount: &containerd_shim_protos::api::Mount,
) -> containerd_shim_protos::types::mount::Mount {
    mount.clone()
}
