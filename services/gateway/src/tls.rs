//! TLS of TCP listeners, from PEM files.

use contracts::{Error, Result};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::{path::Path, sync::Arc};
use tokio_rustls::server::TlsStream;

/// Shakes hands with clients.
pub(crate) type Acceptor = tokio_rustls::TlsAcceptor;

/// Reads certificate chain and key, and the certificates of those who sign for clients, if any do.
///
/// A client that shows a certificate must show a good one. Errors: `FailedPrecondition` naming the setting and the file.
pub(crate) fn acceptor(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Acceptor> {
    let chain = certificates("tls_cert", cert)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| named("tls_key", key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match client_ca {
        Some(ca) => clients(ca, provider.clone())?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, secret)
        })
        .map_err(|e| named("tls_cert", cert, &e))?;
    Ok(Arc::new(config).into())
}

/// Whether the client of a connection has shown a certificate, which was then a good one.
pub(crate) fn known<T>(stream: &TlsStream<T>) -> bool {
    stream.get_ref().1.peer_certificates().is_some()
}

fn clients(ca: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls_client_ca", ca)? {
        roots
            .add(certificate)
            .map_err(|e| named("tls_client_ca", ca, &e))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| named("tls_client_ca", ca, &e))
}

fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|e| named(setting, file, &e))
}

fn named(setting: &str, file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::precondition(format!("{setting} {}: {error}", file.display()))
}
