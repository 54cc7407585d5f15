//! The ttrpc service: takes requests apart, puts answers together, decides nothing.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use std::collections::HashMap;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::error::{About, Error, Result};
use crate::events::timestamp;
use crate::shim::Shim;

struct TaskService(Arc<Shim>);

/// The same methods under the names of both versions of the protocol.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let one = || create_task(Arc::new(TaskService(shim.clone())));
    let mut both = one();
    both.extend(
        one()
            .into_iter()
            .map(|(name, service)| (name.replace(".v3.", ".v2."), service)),
    );
    both
}

/// Lets a request go on when its caller vanishes: ttrpc drops the handler with the connection.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    Ok(tokio::spawn(work).await.about("request")??)
}

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        Ok(self.0.state(&request.id, &request.exec_id)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let shim = self.0.clone();
        let pid = detached(async move { shim.create(request).await }).await?;
        Ok(api::CreateTaskResponse {
            pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let shim = self.0.clone();
        let start = async move { shim.start(&request.id, &request.exec_id).await };
        let pid = detached(start).await?;
        Ok(api::StartResponse {
            pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let shim = self.0.clone();
        let delete = async move { shim.delete(&request.id, &request.exec_id).await };
        let (pid, exit) = detached(delete).await?;
        Ok(api::DeleteResponse {
            pid: pid.unsigned_abs(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let processes = self.0.pids(&request.id)?;
        Ok(api::PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<api::Empty> {
        let shim = self.0.clone();
        detached(async move { shim.pause(&request.id).await }).await?;
        Ok(api::Empty::default())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        let shim = self.0.clone();
        detached(async move { shim.resume(&request.id).await }).await?;
        Ok(api::Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        Err(Error::unimplemented("this shim cannot checkpoint: use containerd-shim-runc-v2").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let shim = self.0.clone();
        let kill = async move {
            shim.kill(&request.id, &request.exec_id, request.signal, request.all)
                .await
        };
        detached(kill).await?;
        Ok(api::Empty::default())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.0.exec(request)?;
        Ok(api::Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.0
            .resize(&request.id, &request.exec_id, request.width, request.height)?;
        Ok(api::Empty::default())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        if request.stdin {
            self.0.close_stdin(&request.id, &request.exec_id)?;
        }
        Ok(api::Empty::default())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        let shim = self.0.clone();
        let update = async move {
            shim.update(&request.id, request.resources.into_option())
                .await
        };
        detached(update).await?;
        Ok(api::Empty::default())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.0.wait(&request.id, &request.exec_id).await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = self.0.stats(&request.id)?;
        Ok(api::StatsResponse {
            stats: Some(stats).into(),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        _: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = self
            .0
            .lock()
            .as_ref()
            .map_or(0, |container| container.init.pid);
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task_pid.unsigned_abs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        if request.now || self.0.lock().is_none() {
            self.0.stop.notify_one();
        }
        Ok(api::Empty::default())
    }
}
