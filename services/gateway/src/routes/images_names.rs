//! Which image a name means. That of this very name if there is one, for names are free text; otherwise that of its full
//! form, so that `busybox` finds what `pull busybox` made; and a new name is made in full.

use crate::request::Request;
use contracts::images::{Get, Image};
use contracts::{Code, Error, ImageName, Namespace, Result, namespaces};

/// Most namespaces that are searched for an image that is not in the caller's.
const SEARCHED: u32 = 20;

/// The stored name that the path means. Errors: as [`meant`].
pub(super) async fn named(request: &Request) -> Result<ImageName> {
    meant(request, request.part("name")?).await
}

/// The stored name that a user means, or the one that a new image gets. Errors: `InvalidArgument`; the images plugin is away.
pub(super) async fn meant(request: &Request, given: ImageName) -> Result<ImageName> {
    let full = reference::full(&given);
    if full == given {
        return Ok(full);
    }
    match request.call(Get { name: given }).await {
        Err(error) if error.is(Code::NotFound) => Ok(full),
        found => found.map(|image| image.name),
    }
}

/// Looks up the image of the path. Errors: `NotFound` naming the namespaces that do have it.
pub(super) async fn find(request: &Request) -> Result<Image> {
    let given: ImageName = request.part("name")?;
    let full = reference::full(&given);
    let mut names = vec![full];
    if names[0] != given {
        names.insert(0, given);
    }
    let mut missing = Error::not_found("image");
    for name in &names {
        match request.call(Get { name: name.clone() }).await {
            Err(error) if error.is(Code::NotFound) => missing = error,
            found => return found,
        }
    }
    Err(elsewhere(request, &names, missing).await)
}

async fn elsewhere(request: &Request, names: &[ImageName], error: Error) -> Error {
    let list = namespaces::List {
        paging: contracts::Paging {
            limit: SEARCHED,
            ..Default::default()
        },
    };
    let Ok(all) = request.call(list).await else {
        return error;
    };
    let mut holding: Vec<Namespace> = Vec::new();
    for namespace in all.items.into_iter().map(|info| info.name) {
        if has(request, &namespace, names).await {
            holding.push(namespace);
        }
    }
    match holding.is_empty() {
        true => error,
        false => {
            let spaces: Vec<&str> = holding.iter().map(Namespace::as_str).collect();
            let says = format!(
                "{}; it is in namespace {}",
                error.message,
                spaces.join(", ")
            );
            Error::new(error.code, says)
        }
    }
}

async fn has(request: &Request, namespace: &Namespace, names: &[ImageName]) -> bool {
    let there = request.ctx.clone().in_namespace(namespace.clone());
    for name in names {
        let get = Get { name: name.clone() };
        if request.bus().call(&there, get).await.is_ok() {
            return true;
        }
    }
    false
}
