"""HTTP only: routes, request and reply shapes, authentication, errors as statuses."""
