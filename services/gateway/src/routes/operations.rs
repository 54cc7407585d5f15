//! Long work: listed, watched again, cancelled. How it begins is told where each kind of work is.

use crate::convert::DryView;
use crate::convert::operation::OperationView;
use crate::errors::Answer;
use crate::lists;
use crate::param::{self, Param};
use crate::request::{Accept, Request, ok};
use crate::router::{Media, Route, delete, get};
use crate::work::{self, WAIT};
use contracts::operations::{Cancel, Get, List};
use contracts::{Namespace, Result};

const NAMESPACE: Param = param::text("namespace", "Only those of this namespace");

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/operations", list)
            .says("Operations, newest first")
            .query(&[NAMESPACE])
            .lists::<OperationView>(),
        get("/v1/operations/{id*}", show)
            .says("One operation: now, at its end (wait=true), or step by step by Accept")
            .query(&[WAIT, NAMESPACE])
            .media(Media::Records)
            .answers::<OperationView>(),
        delete("/v1/operations/{id*}", cancel)
            .says("Stops running work and undoes what was not finished")
            .query(&[NAMESPACE])
            .dry()
            .answers::<OperationView>(),
    ]
}

/// The namespace is a parameter here, for operations have ids that are unique on the node.
fn place(request: &mut Request) -> Result<()> {
    request.ctx.namespace = request.query("namespace").map(Namespace::new).transpose()?;
    Ok(())
}

async fn list(mut request: Request) -> Answer {
    place(&mut request)?;
    let paging = request.paging()?;
    lists::listed::<OperationView, _, _>(&request, List { paging }).await
}

async fn show(mut request: Request) -> Answer {
    place(&mut request)?;
    let get = Get {
        id: request.part("id")?,
    };
    let mut operation = request.call(get.clone()).await?;
    if matches!(request.accept(), Accept::Sse | Accept::Ndjson) {
        return work::progress(&request, operation.id);
    }
    if request.flag("wait")? {
        operation = work::last(&request, &operation.id).await?;
    }
    ok(OperationView::from(operation))
}

async fn cancel(mut request: Request) -> Answer {
    place(&mut request)?;
    let id = request.part("id")?;
    if request.dry_run()? {
        let operation = request.call(Get { id }).await?;
        return ok(DryView::would("cancel", OperationView::from(operation)));
    }
    ok(OperationView::from(request.call(Cancel { id }).await?))
}
