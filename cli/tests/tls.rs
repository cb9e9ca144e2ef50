//! `--url https://`: a service behind TLS, whose certificate is signed by a private authority.

mod common;

use std::fs;
use std::sync::Arc;

use actix_web::rt::System;
use actix_web::{App, HttpServer, web};
use common::TestDb;
use common::binary::command;
use failure_logger::LoggerHandle;
use failure_logger::http::{self, HttpOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;

/// Serves `logger` on https://localhost, and returns its port. Writes the authority's certificate
/// to `ca_file`.
fn serve(logger: &LoggerHandle, ca_file: &std::path::Path) -> u16 {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    fs::write(ca_file, authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let api = http::configure(logger.clone(), HttpOptions::default());
    let (send, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        System::new().block_on(async move {
            // The routes have a prefix, as behind a proxy.
            let app = move || App::new().service(web::scope("/failures").configure(api.clone()));
            let server = HttpServer::new(app)
                .workers(1)
                .bind_rustls_0_23(("127.0.0.1", 0), config)
                .unwrap();
            send.send(server.addrs()[0].port()).unwrap();
            server.run().await.unwrap();
        });
    });
    started.recv().unwrap()
}

#[test]
fn service_behind_tls_is_reached_if_its_authority_is_trusted() {
    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(common::no_hit(1));
    common::block_on(logger.flush()).unwrap();
    let ca_file = db.folder.path().join("authority.pem");
    let port = serve(&logger, &ca_file);
    let url = format!("https://localhost:{port}/failures/");
    let run = |arguments: &[&str]| {
        let output = command(&db, arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = run(&[
        "list",
        "--url",
        &url,
        "--ca-file",
        ca_file.to_str().unwrap(),
    ]);
    assert_eq!((code, out.lines().count()), (Some(0), 1), "{err}");
    assert!(out.contains("where is the key?"), "{out}");

    // The cases are: an authority unknown to the system, a name other than the certificate's, and
    // no TLS.
    let (code, _, err) = run(&["list", "--url", &url]);
    assert!(
        code == Some(3) || err.contains("trusts no certificate authority"),
        "{code:?} {err}"
    );
    let other_name = url.replace("localhost", "127.0.0.1");
    assert_eq!(
        run(&[
            "list",
            "--url",
            &other_name,
            "--ca-file",
            ca_file.to_str().unwrap()
        ])
        .0,
        Some(3)
    );
    assert_eq!(
        run(&["list", "--url", &url.replace("https", "http")]).0,
        Some(3)
    );
    for (file, cause) in [
        ("missing.pem", "missing.pem: "),
        ("failures.db", "there is no certificate in it"),
    ] {
        let (code, _, err) = run(&["list", "--url", &url, "--ca-file", file]);
        assert!(
            code == Some(2) && err.contains(cause) && err.contains("expected certificates in PEM"),
            "{err}"
        );
    }
}
