//! TLS of TCP listeners, from PEM files.

use contracts::{Error, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{path::Path, sync::Arc};

/// Shakes hands with clients.
pub(crate) type Acceptor = tokio_rustls::TlsAcceptor;

/// Reads certificate chain and key. Errors: `FailedPrecondition` naming the setting and the file.
pub(crate) fn acceptor(cert: &Path, key: &Path) -> Result<Acceptor> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| named("tls_cert", cert, &e))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| named("tls_key", key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        })
        .map_err(|e| named("tls_cert", cert, &e))?;
    Ok(Arc::new(config).into())
}

fn named(setting: &str, file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::precondition(format!("{setting} {}: {error}", file.display()))
}
