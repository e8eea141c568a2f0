"""The pages of the web application, one `APIRouter` each. `request.app.state.storage` is the root that they show."""
