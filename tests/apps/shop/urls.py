"""Where everything is."""

from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path('admin/', admin.site.urls),
    path('upload', views.upload),
    path('stream', views.stream),
    path('download', views.download),
]
