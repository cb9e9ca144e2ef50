//! Responses with constant content. A client that has the content cached gets 304.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::sync::OnceLock;

use actix_web::http::StatusCode;
use actix_web::http::header::{
    AcceptEncoding, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ContentEncoding, ETAG, Encoding,
    Header as _, IF_NONE_MATCH, VARY,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Content that is constant while the process runs, and what is computed from it once.
pub(crate) struct Content {
    content_type: &'static str,
    plain: Bytes,
    /// `None` until the first request, and also if gzip does not make the content smaller.
    gzip: OnceLock<Option<Bytes>>,
    tag: OnceLock<String>,
}

impl Content {
    pub(crate) fn new(content_type: &'static str, plain: impl Into<Bytes>) -> Self {
        Self {
            content_type,
            plain: plain.into(),
            gzip: OnceLock::new(),
            tag: OnceLock::new(),
        }
    }

    /// Returns the content as gzip with the highest compression. The first call compresses it,
    /// which takes some milliseconds.
    pub(crate) fn gzip(&self) -> Option<&Bytes> {
        let gzip = self.gzip.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            // Writing to memory does not fail.
            encoder.write_all(&self.plain).ok()?;
            let gzip = encoder.finish().ok()?;
            (gzip.len() < self.plain.len()).then(|| gzip.into())
        });
        gzip.as_ref()
    }

    /// Returns the entity tag. It is weak, because it is the same for each encoding.
    fn tag(&self) -> &str {
        self.tag.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.plain.hash(&mut hasher);
            format!("W/\"{:016x}\"", hasher.finish())
        })
    }
}

/// Responds with `content`, compressed if the client accepts gzip, or with 304 if the client has it
/// cached.
pub(crate) fn respond(request: &HttpRequest, content: &Content) -> HttpResponse {
    let tag = content.tag();
    let known = request
        .headers()
        .get_all(IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|tags| tags.split(','))
        .any(|known| matches(known.trim(), tag));
    let mut response = HttpResponse::build(if is_known {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    });
    response
        // The client revalidates each time, so that it sees a new version at once.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((ETAG, tag))
        // The compression middleware adds this only to responses that it compresses.
        .insert_header((VARY, "accept-encoding"));
    if is_known {
        return response.finish();
    }
    response.insert_header((CONTENT_TYPE, content.content_type));
    match content.gzip().filter(|_| accepts_gzip(request)) {
        // The middleware leaves a response as it is if it has an encoding.
        Some(gzip) => response
            .insert_header((CONTENT_ENCODING, ContentEncoding::Gzip))
            .body(gzip.clone()),
        None => response.body(content.plain.clone()),
    }
}

/// Returns `true` if the client accepts gzip. A client without the header may not know it.
fn accepts_gzip(request: &HttpRequest) -> bool {
    let supported = [Encoding::gzip(), Encoding::identity()];
    AcceptEncoding::parse(request)
        .ok()
        .and_then(|accepted| accepted.negotiate(supported.iter()))
        .is_some_and(|chosen| chosen == Encoding::gzip())
}

/// Compares two entity tags weakly (RFC 9110, 8.8.3.2).
fn matches(known: &str, tag: &str) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    known == "*" || opaque(known) == opaque(tag)
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use actix_web::http::header::ACCEPT_ENCODING;
    use actix_web::test::TestRequest;

    use super::*;

    const LONG: &[u8] = &[b'a'; 1000];

    #[test]
    fn client_that_has_the_content_gets_304_however_it_says_so() {
        let content = Content::new("text/plain", b"content".as_slice());
        let respond = |tags: &str| {
            let request = TestRequest::default()
                .insert_header((IF_NONE_MATCH, tags))
                .to_http_request();
            respond(&request, &content)
        };
        let first = respond("");
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers().get(ETAG).unwrap().to_str().unwrap();
        let strong = tag.trim_start_matches("W/");
        for known in [
            tag,
            strong,
            "*",
            &format!("\"x\", {tag}"),
            &format!("{strong},W/\"y\""),
        ] {
            assert_eq!(respond(known).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        for other in ["\"x\"", "x", &tag[..tag.len() - 1]] {
            assert_eq!(respond(other).status(), StatusCode::OK, "{other}");
        }
    }

    #[actix_web::test]
    async fn content_is_gzip_exactly_for_clients_that_accept_it() {
        let content = Content::new("text/plain", LONG);
        for (accepted, is_gzip) in [
            (Some("gzip, deflate, br, zstd"), true),
            (Some("gzip;q=0.5"), true),
            (Some("gzip;q=0"), false),
            (Some("identity"), false),
            (Some("br"), false),
            (Some("nonsense;;;"), false),
            (None, false),
        ] {
            let mut request = TestRequest::default();
            if let Some(accepted) = accepted {
                request = request.insert_header((ACCEPT_ENCODING, accepted));
            }
            let response = respond(&request.to_http_request(), &content);
            let headers = response.headers().clone();
            assert_eq!(
                headers.contains_key(CONTENT_ENCODING),
                is_gzip,
                "{accepted:?}"
            );
            assert_eq!(headers.get(VARY).unwrap(), "accept-encoding");
            let body = to_bytes(response.into_body()).await.unwrap();
            assert_eq!(body == LONG, !is_gzip, "{accepted:?}");
            assert_eq!(body.len() < 100, is_gzip, "{accepted:?}");
        }
    }

    #[test]
    fn content_that_gzip_makes_longer_stays_plain() {
        assert_eq!(Content::new("text/plain", b"a".as_slice()).gzip(), None);
    }
}
