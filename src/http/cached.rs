//! Responses with constant content. A client that has the content cached gets 304.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use actix_web::{HttpRequest, HttpResponse};

/// Responds with `content`, or with 304 if the client has it cached.
///
/// The entity tag is weak, because a middleware may compress the content.
pub(crate) fn respond(
    request: &HttpRequest,
    content_type: &'static str,
    content: &'static [u8],
) -> HttpResponse {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let tag = format!("W/\"{:016x}\"", hasher.finish());
    let known = request
        .headers()
        .get_all(IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|tags| tags.split(','))
        .any(|known| matches(known.trim(), &tag));
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
    response
        .insert_header((CONTENT_TYPE, content_type))
        .body(content)
}

/// Compares two entity tags weakly (RFC 9110, 8.8.3.2).
fn matches(known: &str, tag: &str) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    known == "*" || opaque(known) == opaque(tag)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn client_that_has_the_content_gets_304_however_it_says_so() {
        let respond = |tags: &str| {
            let request = TestRequest::default()
                .insert_header((IF_NONE_MATCH, tags))
                .to_http_request();
            respond(&request, "text/plain", b"content")
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
}
