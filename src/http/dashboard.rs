//! The dashboard: static files that ask the routes beside them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION};
use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};

use super::problem::Problem;

/// Nothing from elsewhere, nothing inline, and no text that becomes markup: what was logged is hostile.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types";

/// A file, and what it is.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! assets {
    ($($name:literal: $content_type:expr),+ $(,)?) => {
        &[$(Asset {
            name: $name,
            content_type: $content_type,
            content: include_bytes!(concat!("dashboard/", $name)),
        }),+]
    };
}

const PAGE: &str = "index.html";
const ASSETS: &[Asset] = assets! {
    "index.html": HTML,
    "style.css": CSS,
    "icon.svg": "image/svg+xml",
    "main.js": SCRIPT,
    "api.js": SCRIPT,
    "state.js": SCRIPT,
    "dom.js": SCRIPT,
    "format.js": SCRIPT,
    "charts.js": SCRIPT,
    "overview.js": SCRIPT,
    "failures.js": SCRIPT,
    "queries.js": SCRIPT,
    "calibration.js": SCRIPT,
    "vendor/uPlot.iife.min.js": SCRIPT,
    "vendor/uPlot.min.css": CSS,
};

/// The page.
pub(super) async fn page(request: HttpRequest) -> Result<HttpResponse, Problem> {
    serve(&request, PAGE)
}

/// What the page consists of.
pub(super) async fn asset(request: HttpRequest, name: Path<String>) -> Result<HttpResponse, Problem> {
    serve(&request, &name)
}

/// From a scope to the page in it, whose files are beside it.
pub(super) async fn to_page(request: HttpRequest) -> HttpResponse {
    // Relative, for whatever stands before the service may have a prefix of its own.
    let scope = request.path().rsplit('/').next().unwrap_or_default();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    HttpResponse::TemporaryRedirect().insert_header((LOCATION, format!("./{scope}/{query}"))).finish()
}

fn serve(request: &HttpRequest, name: &str) -> Result<HttpResponse, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| Problem::not_found("there is no such file"))?;
    let mut hasher = DefaultHasher::new();
    asset.content.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = request.headers().get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = HttpResponse::build(if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
    response
        .insert_header((CONTENT_TYPE, asset.content_type))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        // Asked for each time, and sent when it has changed: a new version is seen at once.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((ETAG, tag));
    Ok(if known { response.finish() } else { response.body(asset.content) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_weighs_less_than_150_kb() {
        let weight: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
        assert!(weight < 150_000, "{weight} bytes");
    }
}
