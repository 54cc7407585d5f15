//! Blobs. Their bytes come by a descriptor of the store, whole or in part.

use crate::convert::content::BlobView;
use crate::convert::{DryView, LabelBody};
use crate::errors::{Answer, Problem};
use crate::lists;
use crate::pipe;
use crate::range::{Wanted, wanted};
use crate::request::{Request, nothing, ok};
use crate::router::{Media, Route, delete, get, head, patch};
use crate::stream::Cut;
use actix_web::body::SizedStream;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, HttpResponseBuilder};
use contracts::content::{Blob, Delete, List, Open, Stat, Update};
use contracts::{Digest, Error, Result};
use futures_util::StreamExt;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/content", list)
            .says("Blobs, by digest")
            .lists::<BlobView>(),
        get("/v1/namespaces/{ns}/content/{digest}/info", info)
            .says("One blob without its bytes")
            .answers::<BlobView>(),
        get("/v1/namespaces/{ns}/content/{digest}", bytes)
            .says("A blob's bytes, or a Range of them")
            .media(Media::Bytes),
        head("/v1/namespaces/{ns}/content/{digest}", size)
            .says("A blob's size")
            .media(Media::Bytes),
        patch("/v1/namespaces/{ns}/content/{digest}", relabel)
            .says("Changes labels")
            .takes::<LabelBody>()
            .answers::<BlobView>(),
        delete("/v1/namespaces/{ns}/content/{digest}", remove)
            .says("Deletes a blob from this namespace")
            .dry()
            .status(204),
    ]
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<BlobView, _, _>(&request, List { paging }).await
}

async fn stat(request: &Request) -> Result<Blob> {
    let digest = request.part("digest")?;
    request.call(Stat { digest }).await
}

async fn info(request: Request) -> Answer {
    ok(BlobView::from(stat(&request).await?))
}

fn described(response: &mut HttpResponseBuilder, digest: &Digest) {
    response
        .insert_header((header::ETAG, format!("\"{digest}\"")))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .content_type("application/octet-stream");
}

async fn size(request: Request) -> Answer {
    let blob = stat(&request).await?;
    let mut response = HttpResponse::Ok();
    described(&mut response, &blob.digest);
    // The length without the bytes: what a body would have, had it been asked for.
    Ok(response.body(SizedStream::new(
        blob.size,
        futures_util::stream::empty::<Result<actix_web::web::Bytes, Cut>>(),
    )))
}

async fn bytes(request: Request) -> Answer {
    let digest = request.part("digest")?;
    let opened = request.call(Open { digest }).await?;
    let size = opened.blob.size;
    let (range, mut response) = match wanted(request.header("range"), size) {
        Wanted::All => (0..size, HttpResponse::Ok()),
        Wanted::Part(range) => {
            let mut response = HttpResponse::PartialContent();
            let shown = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response.insert_header((header::CONTENT_RANGE, shown));
            (range, response)
        }
        Wanted::Nowhere => {
            let error =
                Error::out_of_range(format!("content {}: has {size} bytes", opened.blob.digest));
            return Err(
                Problem::with_status(StatusCode::RANGE_NOT_SATISFIABLE, error)
                    .header(header::CONTENT_RANGE, format!("bytes */{size}")),
            );
        }
    };
    described(&mut response, &opened.blob.digest);
    let length = range.end - range.start;
    let body = pipe::part(opened.fd, range)?;
    Ok(response.body(SizedStream::new(
        length,
        body.map(|chunk| chunk.map_err(Cut)),
    )))
}

async fn relabel(mut request: Request) -> Answer {
    let body: LabelBody = request.json().await?;
    let update = Update {
        digest: request.part("digest")?,
        labels: body.into(),
    };
    ok(BlobView::from(request.call(update).await?))
}

async fn remove(request: Request) -> Answer {
    if request.dry_run()? {
        let blob = BlobView::from(stat(&request).await?);
        return ok(DryView::would("delete the blob", blob));
    }
    let digest = request.part("digest")?;
    request.call(Delete { digest }).await?;
    nothing()
}
