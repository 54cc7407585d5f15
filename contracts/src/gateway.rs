//! The HTTP edge. It answers nothing on the bus: this contract gives its plugin a name, and nothing to call.

service! {
    /// Translates HTTP/JSON into the other contracts.
    Gateway = "gateway" {}
}
