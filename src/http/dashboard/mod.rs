//! The dashboard: static files that call the routes of the service.

use actix_web::http::header::{CONTENT_SECURITY_POLICY, HeaderValue, LOCATION};
use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};

use crate::http::cached;
use crate::http::problem::Problem;

/// Allows nothing of another host, nothing inline, and no text that becomes markup: logged text is
/// hostile.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types";

/// A file that is served.
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
            content: include_bytes!($name),
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

/// Responds with the page.
pub(crate) async fn page(request: HttpRequest) -> Result<HttpResponse, Problem> {
    serve(&request, PAGE)
}

/// Responds with a file of the page.
pub(crate) async fn asset(
    request: HttpRequest,
    name: Path<String>,
) -> Result<HttpResponse, Problem> {
    serve(&request, &name)
}

/// Redirects from a scope without a slash to the page, whose files have relative addresses.
pub(crate) async fn to_page(request: HttpRequest) -> HttpResponse {
    // Relative, because a proxy may serve the scope below a prefix of its own.
    let scope = request.path().rsplit('/').next().unwrap_or_default();
    let query = request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    HttpResponse::TemporaryRedirect()
        .insert_header((LOCATION, format!("./{scope}/{query}")))
        .finish()
}

fn serve(request: &HttpRequest, name: &str) -> Result<HttpResponse, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| Problem::not_found("there is no such file"))?;
    let mut response = cached::respond(request, asset.content_type, asset.content);
    response
        .headers_mut()
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files are served as they are: comments and JSDoc count.
    #[test]
    fn the_page_weighs_less_than_150_kb() {
        let weight: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
        assert!(weight < 150_000, "{weight} bytes");
    }
}
