//! TLS configuration of the client, with the certificate authorities to trust.
//!
//! The service itself speaks no TLS. A proxy in front of it does, and this is the client's side.
//! The cryptography is that of ring, which needs a C compiler and nothing else to build.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::CommandError;

/// Returns a configuration that trusts only the authorities in `ca_file`, or those of the system if
/// `ca_file` is `None`. `--ca-file` replaces the authorities of the system and does not add to
/// them: a private service then cannot be impersonated with a public certificate.
///
/// # Errors
///
/// A file that cannot be read, or no authority at all. A configuration without authorities would
/// reject each certificate, with an error that names no cause.
pub(super) fn config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, CommandError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let invalid = |error: &dyn std::fmt::Display| {
                CommandError::Usage(format!(
                    "--ca-file {}: {error}; expected certificates in PEM",
                    path.display()
                ))
            };
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| invalid(&error))?
            {
                let certificate = certificate.map_err(|error| invalid(&error))?;
                roots.add(certificate).map_err(|error| invalid(&error))?;
            }
            if roots.is_empty() {
                return Err(invalid(&"there is no certificate in it"));
            }
        }
        None => {
            // Unreadable certificates of the system are skipped; the others remain usable.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let remedy = "install ca-certificates or set --ca-file";
                return Err(CommandError::Usage(format!(
                    "--url: this system trusts no certificate authority; {remedy}"
                )));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| CommandError::Usage(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // The commands need HTTP/1.1 only, and a proxy may choose no other protocol.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
