"""The pages of the web application, an `APIRouter` each. `request.app.state.storage` is the root they show."""
