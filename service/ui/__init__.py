"""The page: a Streamlit app that asks the service over HTTP, and runs no model itself.

`python -m service.ui` starts it. `page` is the script that Streamlit runs for every visitor and
after every click; it draws the tabs `upscaling`, `tracing` and `quality`. `client` talks to the
service, `choice` sorts its models, `comparison` makes the picture with the slider.
"""
